//! The page of somebody who is signed in: list, room, details, and the line that tells about the connection.

import type { Store, Topic } from "../store.ts";
import { messageOf } from "../store.ts";
import { hue, initials } from "../text.ts";
import { Composer } from "./composer.ts";
import { DetailsView } from "./details.ts";
import { createRoomDialog, directDialog, signOutDialog, switcherDialog } from "./dialogs.ts";
import { avatar, bdi, h, icon } from "./dom.ts";
import { LogView } from "./log.ts";
import { RoomsView } from "./rooms.ts";

/** A hidden page draws no frames, but its title still counts. */
const HIDDEN_RENDER_MS = 250;

export interface AppActions {
  signOut(everywhere: boolean): Promise<void>;
  freshId(): string;
  now(): number;
}

export class AppView {
  readonly element: HTMLElement;
  private readonly store: Store;
  private readonly actions: AppActions;
  private readonly banner: HTMLElement;
  private readonly announcer: HTMLElement;
  private readonly rooms: RoomsView;
  private readonly header: HTMLElement;
  private readonly log: LogView;
  private readonly composer: Composer;
  private readonly details: DetailsView;
  private readonly chat: HTMLElement;
  private readonly front: HTMLElement;
  private readonly detailsButton: HTMLButtonElement;
  private dirty = new Set<Topic>();
  private scheduled = false;
  private shownPlace = "";
  private doorSig = "";
  private headerSig = "";
  private wasOffline = false;
  private seconds: ReturnType<typeof setTimeout> | null = null;

  constructor(store: Store, actions: AppActions) {
    this.store = store;
    this.actions = actions;
    this.banner = h("div", { class: "banner", hidden: true });
    this.announcer = h("div", { class: "hidden-text", role: "status" });
    this.rooms = new RoomsView(store, {
      create: () => this.create(),
      direct: () => directDialog(store, (room) => this.open(room)),
      find: () => this.find(),
      signOut: () => signOutDialog(store.session.outbox.unsettled, actions.signOut),
    });
    this.detailsButton = h(
      "button",
      { class: "icon-button", type: "button", "aria-label": "Room details", title: "Room details", "aria-expanded": "false", click: () => this.toggleDetails() },
      icon("people"),
    );
    this.header = h("header", { class: "room-header" });
    this.log = new LogView(store);
    this.log.onReply = (event) => {
      const room = store.openRoom;
      if (!room) return;
      room.replyTo = event;
      store.touch("room");
      this.composer.focus();
    };
    this.composer = new Composer(store, () => this.log.toEnd());
    this.details = new DetailsView(store, () => this.toggleDetails());
    this.chat = h("div", { class: "chat", hidden: true }, this.header, this.log.element, this.composer.element);
    this.front = h("div", { class: "front" });
    this.element = h(
      "div",
      { class: "app" },
      this.banner,
      this.announcer,
      this.rooms.element,
      h("main", { class: "room", "aria-label": "Room" }, this.chat, this.front),
      this.details.element,
    );
    store.listen((topics) => this.schedule(topics));
    const looked = () => this.log.markSeen();
    window.addEventListener("focus", looked);
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") this.schedule(new Set(["log", "rooms"]));
      looked();
    });
    document.addEventListener("keydown", (event) => this.keys(event));
    // times of the list ("10:31", "Mon") grow old
    setInterval(() => this.schedule(new Set(["rooms"])), 60_000);
  }

  /** Forgets what was drawn: the next one to sign in may be somebody else. */
  reset(): void {
    this.log.clear();
    this.composer.clear();
    this.headerSig = "";
    this.doorSig = "";
    this.shownPlace = "";
    this.wasOffline = false;
    this.announcer.textContent = "";
    if (!this.details.element.hidden) this.toggleDetails();
  }

  /** Where the keyboard is after signing in. */
  focus(): void {
    this.rooms.focus();
  }

  // ------------------------------------------------------------ going about

  private open(room: string): void {
    const address = `#/room/${room}`;
    if (location.hash === address) this.store.go(room);
    else location.hash = address;
  }

  private create(name = ""): void {
    createRoomDialog(this.store, this.actions.freshId, (room) => this.open(room), name);
  }

  private find(): void {
    switcherDialog(this.store, {
      open: (room) => this.open(room),
      direct: (username) => this.store.direct(username),
      create: (name) => setTimeout(() => this.create(name)),
    });
  }

  private toggleDetails(): void {
    const { element } = this.details;
    element.hidden = !element.hidden;
    this.detailsButton.setAttribute("aria-expanded", String(!element.hidden));
    this.element.classList.toggle("with-details", !element.hidden);
    if (element.hidden) {
      this.detailsButton.focus();
    } else {
      const room = this.store.openRoom;
      if (room && !room.membersLoaded) void this.store.loadMembers(room.info.room);
      this.details.render();
      this.details.focus();
    }
  }

  private keys(event: KeyboardEvent): void {
    if (!this.element.isConnected) return;
    if ((event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === "k") {
      event.preventDefault();
      if (!document.querySelector("dialog[open]")) this.find();
      return;
    }
    if (document.querySelector("dialog[open]") || event.defaultPrevented) return;
    if (event.key === "Escape") {
      if (!this.details.element.hidden) this.toggleDetails();
      else if (this.store.openRoom) {
        this.log.toEnd();
        this.composer.focus();
      }
    }
  }

  // ------------------------------------------------------------ drawing

  private schedule(topics: Set<Topic>): void {
    for (const topic of topics) this.dirty.add(topic);
    if (this.scheduled) return;
    this.scheduled = true;
    if (document.visibilityState === "visible") requestAnimationFrame(() => this.draw());
    else setTimeout(() => this.draw(), HIDDEN_RENDER_MS);
  }

  private draw(): void {
    this.scheduled = false;
    const dirty = this.dirty;
    this.dirty = new Set();
    if (!this.element.isConnected) return;
    if (dirty.has("link")) this.drawBanner();
    if (dirty.has("link") || dirty.has("me")) this.rooms.renderMe();
    if (dirty.has("rooms") || dirty.has("link")) this.rooms.render();
    if (dirty.has("room") || dirty.has("rooms") || dirty.has("members")) this.drawPlace();
    if (dirty.has("room") || dirty.has("link")) this.composer.render();
    if (dirty.has("log") || dirty.has("room") || dirty.has("link")) this.log.render();
    if (dirty.has("members") || dirty.has("room")) this.details.render();
    const unread = this.store.totalUnread;
    const room = this.store.openRoom;
    const title = room ? `${this.store.roomName(room.info)} – Banyan` : "Banyan";
    document.title = unread > 0 ? `(${unread}) ${title}` : title;
  }

  private drawPlace(): void {
    const { place } = this.store;
    const room = this.store.openRoom;
    this.element.classList.toggle("in-room", place.at !== "home");
    this.chat.hidden = room === null;
    this.front.hidden = room !== null;
    if (room) this.drawHeader();
    else {
      if (!this.details.element.hidden) this.toggleDetails();
      this.drawFront();
    }
    const key = place.at === "home" ? "home" : `${place.at} ${place.room}`;
    if (key !== this.shownPlace) {
      this.shownPlace = key;
      // touch screens would open their keyboard
      if (room && !document.querySelector("dialog[open]") && matchMedia("(hover: hover)").matches) {
        this.composer.render();
        this.composer.focus();
      }
    }
  }

  private drawHeader(): void {
    const room = this.store.openRoom;
    if (!room) return;
    const { info } = room;
    const name = this.store.roomName(info);
    const kind = info.kind === "direct" ? "Direct chat" : `${info.public ? "Public" : "Private"} ${info.kind === "broadcast" ? "broadcast" : "group"}`;
    const members = info.kind === "direct" || !room.membersLoaded ? "" : ` · ${room.memberCount.toLocaleString()} ${room.memberCount === 1 ? "member" : "members"}`;
    const sig = [info.room, name, kind, members].join("|");
    if (sig === this.headerSig) return;
    this.headerSig = sig;
    const focused = document.activeElement;
    this.header.replaceChildren(
      h("a", { class: "icon-button back", href: "#/", "aria-label": "Back to the rooms" }, icon("back")),
      avatar(info.room, initials(name), hue(info.peer ?? info.room)),
      h("div", { class: "grow" }, h("h2", {}, bdi(name)), h("p", {}, kind + members)),
      this.detailsButton,
    );
    if (focused === this.detailsButton) this.detailsButton.focus();
  }

  private drawFront(): void {
    const { place } = this.store;
    const sig = JSON.stringify(place) + String(this.store.listed);
    if (sig === this.doorSig) return;
    this.doorSig = sig;
    const picture = h("img", { src: "/assets/icon.svg", alt: "", width: 72, height: 72 });
    if (place.at === "door") {
      const { room, state } = place;
      const problem = h("p", { class: "problem", role: "alert" });
      const join = h("button", { class: "button primary", type: "button" }, "Join room");
      join.addEventListener("click", () => {
        join.disabled = true;
        problem.textContent = "";
        this.store.join(room).catch((error: unknown) => {
          join.disabled = false;
          problem.textContent = messageOf(error);
        });
      });
      const back = h("a", { class: "button", href: "#/" }, "Back to my rooms");
      const words: Record<typeof state, [string, string]> = {
        asking: ["Looking for the room…", ""],
        public: ["Join this room?", "It is public. Everybody in it will see that you joined."],
        left: ["You are not in this room any longer", "If it is public, you can join it again."],
        unknown: ["There is no such room here", "It does not exist, or you may not see it. Ask for an invitation."],
        failed: ["The room cannot be opened", place.at === "door" ? place.message : ""],
      };
      const [title, text] = words[state];
      this.front.replaceChildren(
        picture,
        h("h2", {}, title),
        h("p", { class: "soft" }, text),
        h("p", { class: "soft small-text" }, bdi(room)),
        problem,
        h("div", { class: "buttons" }, back, ...(state === "public" || state === "left" ? [join] : [])),
      );
      return;
    }
    this.front.replaceChildren(
      picture,
      h("h2", {}, this.store.listed && this.store.rooms.size === 0 ? "Welcome to Banyan" : "Choose a room"),
      h("p", { class: "soft" }, "Or start something new."),
      h(
        "div",
        { class: "buttons" },
        h("button", { class: "button", type: "button", click: () => directDialog(this.store, (room) => this.open(room)) }, icon("person"), "Direct chat"),
        h("button", { class: "button primary", type: "button", click: () => this.create() }, icon("plus"), "Create a room"),
      ),
    );
  }

  private drawBanner(): void {
    const { link } = this.store;
    if (this.seconds) clearTimeout(this.seconds);
    this.seconds = null;
    if (link.state === "online") {
      if (this.wasOffline) this.announcer.textContent = "Connected again";
      this.wasOffline = false;
      this.banner.hidden = true;
      return;
    }
    const say = (state: string, text: string, button?: HTMLElement) => {
      this.banner.hidden = false;
      this.banner.dataset["state"] = state;
      this.banner.replaceChildren(...[h("span", {}, text), button].filter((c): c is HTMLElement => c !== undefined));
    };
    switch (link.state) {
      case "off":
        this.banner.hidden = true;
        break;
      case "connecting":
        say("connecting", link.again ? "Reconnecting…" : "Connecting…");
        break;
      case "waiting": {
        const left = Math.max(0, Math.ceil((link.until - this.actions.now()) / 1000));
        const text = left <= 1 ? "Reconnecting…" : `${link.again ? "Connection lost. Reconnecting" : "The server cannot be reached. Trying again"} in ${left} s`;
        // the button would jump away under the finger if the line were made anew each second
        const now = this.banner.dataset["state"] === "waiting" ? this.banner.querySelector<HTMLElement>("button") : null;
        say("waiting", text, now ?? h("button", { class: "link", type: "button", click: () => this.store.session.hurry() }, "Try now"));
        this.seconds = setTimeout(() => this.drawBanner(), 1_000);
        break;
      }
      case "signed_out":
        say("stopped", "You are signed out.");
        break;
      case "stopped":
        say(
          "stopped",
          `The server ended the connection (${link.code}${link.reason ? `: ${link.reason}` : ""}).`,
          h("button", { class: "link", type: "button", click: () => location.reload() }, "Reload the page"),
        );
        break;
    }
    if (!this.wasOffline && link.state !== "off" && !(link.state === "connecting" && !link.again)) {
      this.wasOffline = true;
      this.announcer.textContent = "Connection lost";
    }
  }
}
