//! The list of rooms, the person, and the state of the connection.

import type { RoomState, Store } from "../store.ts";
import { count, hue, initials, shortTime } from "../text.ts";
import { avatar, bdi, h, icon, Keyed } from "./dom.ts";

/** As many as anybody scrolls through; the switcher finds the others. */
const SHOWN_MAX = 500;

export interface RoomsActions {
  create(): void;
  direct(): void;
  find(): void;
  signOut(): void;
}

export class RoomsView {
  readonly element: HTMLElement;
  private readonly store: Store;
  private readonly list: HTMLElement;
  private readonly me: HTMLElement;
  private readonly empty: HTMLElement;
  private readonly keyed = new Keyed(() => this.render());

  constructor(store: Store, actions: RoomsActions) {
    this.store = store;
    const mac = /Mac|iPhone|iPad/.test(navigator.platform);
    this.list = h("ul", { class: "room-list" });
    this.list.addEventListener("keydown", (event) => this.arrows(event));
    this.me = h("div", { class: "me" });
    this.empty = h(
      "div",
      { class: "empty", hidden: true },
      h("p", {}, "No rooms yet."),
      h("p", { class: "soft" }, "Create one, start a direct chat, or open a link that somebody gave you."),
    );
    this.element = h(
      "nav",
      { class: "sidebar", "aria-label": "Rooms" },
      h(
        "header",
        {},
        h("img", { src: "/assets/icon.svg", alt: "", width: 28, height: 28 }),
        h("h1", {}, "Banyan"),
        h("button", { class: "icon-button", type: "button", "aria-label": "New direct chat", title: "New direct chat", click: actions.direct }, icon("person")),
        h("button", { class: "icon-button", type: "button", "aria-label": "Create a room", title: "Create a room", click: actions.create }, icon("plus")),
      ),
      h(
        "button",
        { class: "find", type: "button", click: actions.find, "aria-keyshortcuts": "Control+K Meta+K" },
        icon("search"),
        h("span", { class: "grow" }, "Find or start"),
        h("kbd", {}, mac ? "⌘K" : "Ctrl K"),
      ),
      this.list,
      this.empty,
      h(
        "footer",
        {},
        this.me,
        h("button", { class: "icon-button", type: "button", "aria-label": "Sign out", title: "Sign out", click: actions.signOut }, icon("out")),
      ),
    );
  }

  focus(): void {
    this.element.querySelector<HTMLElement>(".find")?.focus();
  }

  private arrows(event: KeyboardEvent): void {
    const links = [...this.list.querySelectorAll<HTMLElement>("a")];
    const at = links.indexOf(document.activeElement as HTMLElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: links.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    links[Math.max(0, Math.min(links.length - 1, to))]?.focus();
  }

  renderMe(): void {
    const { me, link } = this.store;
    const online = link.state === "online";
    this.me.replaceChildren(
      avatar(me.user, initials(me.name), hue(me.user), "small"),
      h("span", { class: "grow" }, h("span", { class: "me-name" }, bdi(me.name)), h("span", { class: `presence ${online ? "on" : ""}` }, online ? "Connected" : "Not connected")),
    );
  }

  render(): void {
    const now = Date.now();
    const { place } = this.store;
    const open = place.at === "home" ? null : place.room;
    const rooms = this.store.sorted.slice(0, SHOWN_MAX);
    this.empty.hidden = rooms.length > 0 || !this.store.listed;
    this.keyed.sync(
      this.list,
      rooms.map((room) => {
        const current = room.info.room === open;
        const unread = this.store.unread(room);
        const last = this.lastLine(room);
        const name = this.store.roomName(room.info);
        const time = room.info.last ? shortTime(room.info.last.at, now) : "";
        return {
          key: room.info.room,
          sig: [name, room.info.kind, room.info.public, current, unread, last.who, last.text, time].join("\u0000"),
          make: () =>
            h(
              "li",
              {},
              h(
                "a",
                { class: "room-link", href: `#/room/${room.info.room}`, "aria-current": current ? "page" : undefined, "data-part": "link" },
                avatar(room.info.room, initials(name), hue(room.info.peer ?? room.info.room)),
                h(
                  "span",
                  { class: "room-lines" },
                  h(
                    "span",
                    { class: "room-top" },
                    h("span", { class: "room-name" }, bdi(name), room.info.kind === "broadcast" ? icon("horn") : room.info.kind === "group" && !room.info.public ? icon("lock") : null),
                    time ? h("time", {}, time) : null,
                  ),
                  h(
                    "span",
                    { class: "room-bottom" },
                    h("span", { class: "room-last" }, last.who ? h("span", { class: "room-who" }, bdi(last.who), ": ") : null, h("bdi", {}, last.text)),
                    unread > 0 ? h("span", { class: "badge" }, count(unread), h("span", { class: "hidden-text" }, " unread")) : null,
                  ),
                ),
              ),
            ),
        };
      }),
    );
  }

  private lastLine(room: RoomState): { who: string; text: string } {
    const unsent = this.store.session.outbox.of(room.info.room).at(-1);
    if (unsent) return { who: unsent.state === "failed" ? "Not sent" : this.store.link.state === "online" ? "Sending" : "Waiting", text: unsent.text };
    if (room.draft.trim() && this.store.openRoom !== room) return { who: "Draft", text: room.draft.trim() };
    const { last, kind } = room.info;
    if (!last) return { who: "", text: "No messages yet" };
    const own = last.sender_name === this.store.me.name;
    return { who: kind === "direct" ? (own ? "You" : "") : own ? "You" : last.sender_name, text: last.text || "Data" };
  }
}
