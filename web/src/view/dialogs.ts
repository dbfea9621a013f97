//! Questions that stand in front of the page: new room, direct chat, add people, confirm, sign out, find a room.
//!
//! All are <dialog> shown modally, so the browser keeps the focus inside, Esc closes, and the focus goes back.

import type { RoomKind } from "../protocol.ts";
import { messageOf, type RoomState, type Store } from "../store.ts";
import { hue, initials } from "../text.ts";
import { avatar, bdi, h, icon } from "./dom.ts";

const ROOM_ID = /^[A-Za-z0-9._:-]{1,128}$/;

function show(title: string, className: string, ...content: (HTMLElement | null)[]): HTMLDialogElement {
  const close = h("button", { class: "icon-button", type: "button", "aria-label": "Close", click: () => dialog.close() }, icon("close"));
  const dialog = h(
    "dialog",
    { class: `dialog ${className}`, "aria-labelledby": "dialog-title" },
    h("header", {}, h("h2", { id: "dialog-title" }, title), close),
    ...content,
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    // Chromium gives the focus back but leaves the caret in the removed dialog: typing would go nowhere
    const back = document.activeElement;
    if (back instanceof HTMLElement && back !== document.body) {
      back.blur();
      back.focus({ preventScroll: true });
    }
  });
  // a click beside the dialog closes it
  dialog.addEventListener("mousedown", (event) => {
    if (event.target === dialog) dialog.close();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * A form whose submit does something that may fail; stays open with the reason if it does. Who has closed it meanwhile does
 * something else by now, and is not taken away to what comes of it (`done`).
 */
function form<T>(
  title: string,
  action: string,
  fields: HTMLElement[],
  run: () => Promise<T>,
  { style = "primary", done = () => undefined }: { style?: "primary" | "danger"; done?: (result: T) => void } = {},
): HTMLDialogElement {
  const problem = h("p", { class: "problem", role: "alert" });
  const submit = h("button", { class: `button ${style}`, type: "submit" }, action);
  const element = h(
    "form",
    {},
    ...fields,
    problem,
    h(
      "div",
      { class: "buttons" },
      h("button", { class: "button", type: "button", click: () => dialog.close() }, "Cancel"),
      submit,
    ),
  );
  element.addEventListener("submit", (event) => {
    event.preventDefault();
    if (submit.disabled) return;
    submit.disabled = true;
    problem.textContent = "";
    run().then(
      (result) => {
        if (!dialog.open) return;
        done(result);
        dialog.close();
      },
      (error: unknown) => {
        submit.disabled = false;
        problem.textContent = messageOf(error);
      },
    );
  });
  const dialog = show(title, "", element);
  (element.querySelector<HTMLElement>("input:not([type=radio]):not([type=checkbox])") ?? submit).focus();
  return dialog;
}

const names = (text: string): string[] => [...new Set(text.split(/[\s,;]+/u).map((n) => n.replace(/^@/u, "")).filter(Boolean))];

export function createRoomDialog(store: Store, freshId: () => string, arrived: (room: string) => void, name = ""): void {
  const id = freshId();
  const title = h("input", { id: "room-name", required: true, maxlength: 80, autocomplete: "off", value: name });
  const members = h("input", { id: "room-members", autocomplete: "off", autocapitalize: "none", spellcheck: "false", placeholder: "ada, bob" });
  const open = h("input", { type: "checkbox", id: "room-public" });
  const kind = (value: RoomKind, label: string, hint: string, checked: boolean) =>
    h("label", { class: "choice" }, h("input", { type: "radio", name: "kind", value, checked }), h("span", {}, h("strong", {}, label), h("small", {}, hint)));
  const kinds = h(
    "fieldset",
    { class: "field" },
    h("legend", {}, "Kind"),
    kind("group", "Group", "Everybody writes", true),
    kind("broadcast", "Broadcast", "Only admins write, others read", false),
  );
  form(
    "Create a room",
    "Create room",
    [
      h("div", { class: "field" }, h("label", { for: "room-name" }, "Name"), title),
      kinds,
      h("label", { class: "tick", for: "room-public" }, open, h("span", {}, "Public: anybody with the link may join")),
      h("div", { class: "field" }, h("label", { for: "room-members" }, "People ", h("span", { class: "soft" }, "(user names, optional)")), members),
    ],
    () => {
      const chosen = kinds.querySelector<HTMLInputElement>("input:checked")?.value === "broadcast" ? "broadcast" : "group";
      return store.createRoom(id, chosen, title.value.trim(), open.checked, names(members.value));
    },
    { done: arrived },
  );
}

export function directDialog(store: Store, arrived: (room: string) => void): void {
  const username = h("input", { id: "peer", required: true, autocomplete: "off", autocapitalize: "none", spellcheck: "false" });
  form(
    "New direct chat",
    "Start chat",
    [h("div", { class: "field" }, h("label", { for: "peer" }, "User name"), username)],
    () => store.direct(username.value.trim().replace(/^@/u, "")),
    { done: arrived },
  );
}

export function addPeopleDialog(store: Store, room: RoomState): void {
  const people = h("input", { id: "people", required: true, autocomplete: "off", autocapitalize: "none", spellcheck: "false", placeholder: "ada, bob" });
  form(
    "Add people",
    "Add",
    [h("div", { class: "field" }, h("label", { for: "people" }, "User names"), people)],
    () => store.addMembers(room.info.room, names(people.value)),
  );
}

export function confirmDialog(title: string, text: (string | HTMLElement)[], action: string, run: () => Promise<unknown>): void {
  form(title, action, [h("p", {}, ...text)], run, { style: "danger" });
}

export function signOutDialog(unsent: number, signOut: (everywhere: boolean) => Promise<void>): void {
  const everywhere = h("input", { type: "checkbox", id: "everywhere" });
  form(
    "Sign out",
    "Sign out",
    [
      unsent > 0
        ? h("p", { class: "warning" }, unsent === 1 ? "One message is not sent yet and will be lost." : `${unsent} messages are not sent yet and will be lost.`)
        : h("p", {}, "You can sign in again at any time."),
      h("label", { class: "tick", for: "everywhere" }, everywhere, "Sign out on all my devices"),
    ],
    () => signOut(everywhere.checked),
    { style: unsent > 0 ? "danger" : "primary" },
  );
}

/** Ctrl+K: rooms by name, a room by link or id, a person, a new room. */
export function switcherDialog(
  store: Store,
  actions: { open(room: string): void; direct(username: string): Promise<string>; create(name: string): void },
): void {
  const SHOWN_MAX = 30;
  interface Option {
    row: HTMLElement;
    /** Gives a room to go to, or has done what there is to do. */
    run(): void | Promise<string>;
  }
  let options: Option[] = [];
  let at = 0;
  const input = h("input", {
    type: "text",
    role: "combobox",
    "aria-label": "Find a room or a person",
    "aria-expanded": "true",
    "aria-controls": "switcher-list",
    "aria-autocomplete": "list",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: "Room, person, or a link to a room",
  });
  const list = h("ul", { id: "switcher-list", role: "listbox", "aria-label": "Rooms and actions" });
  const problem = h("p", { class: "problem", role: "alert" });

  const select = (index: number) => {
    at = Math.max(0, Math.min(options.length - 1, index));
    options.forEach((o, i) => o.row.setAttribute("aria-selected", String(i === at)));
    const row = options[at]?.row;
    row?.scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", row?.id ?? "");
  };
  const choose = (option: Option | undefined) => {
    if (!option) return;
    problem.textContent = "";
    Promise.resolve(option.run()).then(
      (room) => {
        if (!dialog.open) return;
        if (room !== undefined) actions.open(room);
        dialog.close();
      },
      (error: unknown) => {
        problem.textContent = messageOf(error);
      },
    );
  };
  const add = (picture: Element, label: (string | HTMLElement)[], hint: string, run: Option["run"]) => {
    const row = h(
      "li",
      { id: `switch-${options.length}`, role: "option", "aria-selected": "false" },
      picture,
      h("span", { class: "grow" }, ...label),
      hint ? h("small", {}, hint) : null,
    );
    const option = { row, run };
    row.addEventListener("mousedown", (event) => event.preventDefault());
    row.addEventListener("click", () => choose(option));
    options.push(option);
  };
  const refresh = () => {
    options = [];
    const query = input.value.trim();
    const wanted = query.toLocaleLowerCase();
    const found = store.sorted.filter((r) => store.roomName(r.info).toLocaleLowerCase().includes(wanted));
    for (const { info } of found.slice(0, SHOWN_MAX)) {
      const name = store.roomName(info);
      const unread = store.unread(store.rooms.get(info.room) as RoomState);
      add(avatar(info.room, initials(name), hue(info.peer ?? info.room), "small"), [bdi(name)], unread > 0 ? `${unread} unread` : "", () => actions.open(info.room));
    }
    if (query) {
      const link = /#\/room\/([A-Za-z0-9._:-]{1,128})$/.exec(query)?.[1] ?? (ROOM_ID.test(query) && /[-.:0-9]/.test(query) ? query : null);
      if (link !== null && !store.rooms.has(link)) add(icon("hash"), ["Go to the room ", bdi(link)], "", () => actions.open(link));
      if (!/[\s/]/.test(query)) add(icon("person"), ["Direct chat with ", bdi(query.replace(/^@/u, ""))], "", () => actions.direct(query.replace(/^@/u, "")));
      if (!query.includes("#/room/")) add(icon("plus"), ["Create a room called ", bdi(query)], "", () => actions.create(query));
    }
    list.replaceChildren(...options.map((o) => o.row));
    if (options.length === 0) list.replaceChildren(h("li", { class: "soft", role: "presentation" }, "No rooms yet. Type a name."));
    select(0);
  };
  input.addEventListener("input", refresh);
  input.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 }[event.key];
    if (step !== undefined) {
      event.preventDefault();
      select(at + step);
    } else if (event.key === "Enter" && !event.isComposing) {
      event.preventDefault();
      choose(options[at]);
    }
  });
  const dialog = show("Go to", "switcher", h("div", { class: "field" }, input), problem, list);
  refresh();
  input.focus();
}
