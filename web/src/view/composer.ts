//! Where one writes.

import { maySend } from "../protocol.ts";
import type { RoomState, Store } from "../store.ts";
import { excerpt, utf8Length } from "../text.ts";
import { bdi, h, icon } from "./dom.ts";

const SHOW_LEFT_BELOW = 1_000;
const LINES_MAX = 8;

export class Composer {
  readonly element: HTMLElement;
  private readonly store: Store;
  private readonly input: HTMLTextAreaElement;
  private readonly sendButton: HTMLButtonElement;
  private readonly left: HTMLElement;
  private readonly form: HTMLFormElement;
  private readonly note: HTMLElement;
  private readonly answering: HTMLElement;
  private room: string | null = null;
  private readonly sent: () => void;

  constructor(store: Store, sent: () => void) {
    this.store = store;
    this.sent = sent;
    this.input = h("textarea", { id: "message", rows: 1, placeholder: "Message", "aria-label": "Message", "aria-describedby": "message-left", autocomplete: "off", enterkeyhint: "send" });
    this.sendButton = h("button", { class: "send", type: "submit", "aria-label": "Send", title: "Send" }, icon("send"));
    this.left = h("span", { class: "left", id: "message-left", role: "status" });
    this.answering = h("div", { class: "answering", hidden: true });
    this.note = h("p", { class: "note", hidden: true });
    this.form = h("form", { class: "composer-form" }, this.answering, h("div", { class: "composer-row" }, this.input, this.left, this.sendButton));
    this.element = h("div", { class: "composer" }, this.form, this.note);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      } else if (event.key === "Escape" && this.store.openRoom?.replyTo) {
        event.stopPropagation();
        this.store.openRoom.replyTo = null;
        this.store.touch("room");
      }
    });
    this.input.addEventListener("input", () => {
      const room = this.store.openRoom;
      if (room) room.draft = this.input.value;
      this.measure();
    });
  }

  focus(): void {
    this.input.focus();
  }

  /** Forgets what was written here; drafts are kept by the store. */
  clear(): void {
    this.room = null;
    this.input.value = "";
  }

  private send(): void {
    const room = this.store.openRoom;
    const text = this.input.value.replace(/\s+$/u, "").replace(/^\s*\n/u, "");
    if (!room || !text.trim() || utf8Length(text) > this.store.session.textLimitBytes) return;
    try {
      this.store.send(room.info.room, text);
    } catch (error) {
      this.left.textContent = error instanceof Error ? error.message : String(error);
      return;
    }
    this.input.value = "";
    this.measure();
    this.sent();
  }

  private measure(): void {
    const text = this.input.value;
    const limit = this.store.session.textLimitBytes;
    const left = limit - utf8Length(text);
    this.left.textContent = left < 0 ? `${-left} bytes too long` : left < Math.min(SHOW_LEFT_BELOW, limit / 2) ? `${left} bytes left` : "";
    this.left.classList.toggle("over", left < 0);
    this.sendButton.disabled = left < 0 || !text.trim();
    // browsers without `field-sizing` grow by lines
    this.input.rows = Math.min(LINES_MAX, text.split("\n").length);
  }

  render(): void {
    const room = this.store.openRoom;
    if (!room) {
      this.clear();
      return;
    }
    if (room.info.room !== this.room) {
      this.room = room.info.room;
      this.input.value = room.draft;
      this.input.placeholder = `Message ${excerpt(this.store.roomName(room.info), 28)}`;
      this.input.setAttribute("aria-label", `Message to ${this.store.roomName(room.info)}`);
      this.measure();
    }
    const why = this.whyNot(room);
    this.form.hidden = why !== null;
    this.note.hidden = why === null;
    this.note.textContent = why ?? "";
    const answered = room.replyTo;
    this.answering.hidden = !answered;
    if (answered) {
      this.answering.replaceChildren(
        icon("reply"),
        h("span", { class: "grow" }, h("strong", {}, bdi(answered.sender_name)), " ", h("bdi", {}, excerpt(answered.message?.text ?? "", 120))),
        h(
          "button",
          {
            class: "icon-button",
            type: "button",
            "aria-label": "Do not reply",
            click: () => {
              room.replyTo = null;
              this.store.touch("room");
              this.focus();
            },
          },
          icon("close"),
        ),
      );
    } else {
      this.answering.replaceChildren();
    }
  }

  private whyNot(room: RoomState): string | null {
    if (room.ended) return room.ended.code === 102 ? "This room was deleted." : "You are no longer a member of this room.";
    if (maySend(room.info.kind, room.info.role)) return null;
    return room.info.kind === "broadcast" ? "Only admins write here." : "You may read here, but not write.";
  }
}
