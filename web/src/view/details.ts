//! About the open room: its name and link, who is in it and as what, leaving.

import { mayGive, mayManage, mayRemove, type Member, type Role } from "../protocol.ts";
import { messageOf, type RoomState, type Store } from "../store.ts";
import { hue, initials } from "../text.ts";
import { addPeopleDialog, confirmDialog } from "./dialogs.ts";
import { avatar, bdi, h, icon, Keyed } from "./dom.ts";

const ROLE_NAMES: Record<Role, string> = { owner: "Owner", admin: "Admin", member: "Member", reader: "Reader", none: "–" };
const ORDER: Role[] = ["owner", "admin", "member", "reader", "none"];

export class DetailsView {
  readonly element: HTMLElement;
  private readonly store: Store;
  private readonly about: HTMLElement;
  private readonly people: HTMLElement;
  private readonly problem: HTMLElement;
  private readonly keyed = new Keyed(() => this.render());
  private readonly heading: HTMLElement;
  private aboutSig = "";
  private aboutRoom = "";

  constructor(store: Store, close: () => void) {
    this.store = store;
    this.heading = h("h2", { tabindex: -1 }, "Details");
    this.about = h("section", { "aria-label": "About this room" });
    this.problem = h("p", { class: "problem", role: "alert" });
    this.people = h("section", { "aria-label": "Members" });
    this.element = h(
      "aside",
      { class: "details", "aria-label": "Room details", hidden: true },
      h("header", {}, this.heading, h("button", { class: "icon-button", type: "button", "aria-label": "Close details", click: close }, icon("close"))),
      h("div", { class: "details-body" }, this.about, this.problem, this.people),
    );
  }

  focus(): void {
    this.heading.focus();
  }

  private act(run: Promise<unknown>): void {
    this.problem.textContent = "";
    run.catch((error: unknown) => {
      this.problem.textContent = messageOf(error);
      this.aboutSig = "";
      this.keyed.clear();
      this.store.touch("members", "room"); // what the person had chosen is put back
    });
  }

  render(): void {
    const room = this.store.openRoom;
    if (!room || this.element.hidden) return;
    this.renderAbout(room);
    this.renderPeople(room);
  }

  private renderAbout(room: RoomState): void {
    const { info } = room;
    const { store } = this;
    const sig = [info.room, info.name, info.public, info.role, room.memberCount, room.ended !== null].join("|");
    if (sig === this.aboutSig) return;
    this.aboutSig = sig;
    this.problem.textContent = "";
    const name = store.roomName(info);
    const manage = mayManage(info.kind, info.role) && !room.ended;
    const link = `${location.origin}/#/room/${info.room}`;
    const children: (HTMLElement | null)[] = [
      h(
        "div",
        { class: "about-top" },
        avatar(info.room, initials(name), hue(info.peer ?? info.room), "large"),
        h("h3", {}, bdi(name)),
        h("p", { class: "soft" }, info.kind === "direct" ? "Direct chat" : `${info.public ? "Public" : "Private"} ${info.kind === "broadcast" ? "broadcast" : "group"}`),
      ),
    ];
    if (manage) {
      const input = h("input", { id: "rename", value: info.name, maxlength: 80, required: true, autocomplete: "off" });
      const form = h("form", { class: "field inline" }, h("label", { for: "rename" }, "Name"), input, h("button", { class: "button small", type: "submit" }, "Save"));
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        const wanted = input.value.trim();
        if (wanted && wanted !== info.name) this.act(store.update(info.room, { name: wanted }));
      });
      const open = h("input", { type: "checkbox", id: "public", checked: info.public });
      open.addEventListener("change", () => this.act(store.update(info.room, { public: open.checked })));
      children.push(form, h("label", { class: "tick", for: "public" }, open, "Public: anybody with the link may join"));
    }
    if (info.kind !== "direct" && info.public) {
      const field = h("input", { id: "link", value: link, readonly: true, focus: () => field.select() });
      const copy = h("button", { class: "button small", type: "button" }, "Copy");
      copy.addEventListener("click", () => {
        field.select();
        const copied = navigator.clipboard ? navigator.clipboard.writeText(link) : Promise.reject(new Error("no clipboard"));
        copied.then(
          () => {
            copy.textContent = "Copied";
          },
          () => {
            copy.textContent = "Press Ctrl+C"; // plain http: the text is selected
          },
        );
      });
      children.push(h("div", { class: "field inline" }, h("label", { for: "link" }, "Link"), field, copy));
    }
    if (info.kind !== "direct" && !room.ended) {
      const lastOwner = info.role === "owner" && room.memberCount > 1;
      children.push(
        h(
          "div",
          { class: "buttons left" },
          manage ? h("button", { class: "button small", type: "button", click: () => addPeopleDialog(store, room) }, icon("plus"), "Add people") : null,
          h(
            "button",
            {
              class: "button small danger-text",
              type: "button",
              disabled: lastOwner,
              title: lastOwner ? "Make somebody else the owner first" : undefined,
              click: () =>
                confirmDialog("Leave this room?", ["You will not see what is written in ", bdi(name), " from now on."], "Leave", () => store.leave(info.room)),
            },
            "Leave room",
          ),
        ),
      );
      if (lastOwner) children.push(h("p", { class: "soft small-text" }, "As the owner you can leave once somebody else is the owner."));
    }
    const typed = this.aboutRoom === info.room ? this.rename() : null;
    this.aboutRoom = info.room;
    const caret = typed !== null && typed === document.activeElement ? [typed.selectionStart, typed.selectionEnd] as const : null;
    this.about.replaceChildren(...children.filter((c): c is HTMLElement => c !== null));
    const field = this.rename();
    if (typed === null || field === null) return;
    // somebody comes or goes while a name is being written: it stays
    if (typed.value !== typed.defaultValue) field.value = typed.value;
    if (caret) {
      field.focus({ preventScroll: true });
      field.setSelectionRange(...caret);
    }
  }

  private rename(): HTMLInputElement | null {
    return this.about.querySelector<HTMLInputElement>("#rename");
  }

  private list: HTMLElement | null = null;
  private count: HTMLElement | null = null;
  private more: HTMLElement | null = null;

  private renderPeople(room: RoomState): void {
    if (!this.list || !this.count || !this.more) {
      this.list = h("ul", { class: "members" });
      this.count = h("h3", {});
      this.more = h("button", { class: "button small", type: "button", hidden: true, click: () => {
        const open = this.store.openRoom;
        if (open) void this.store.loadMembers(open.info.room, true);
      } }, "Show more");
      this.people.append(this.count, this.list, this.more);
    }
    this.people.hidden = !room.membersLoaded;
    this.count.textContent = room.memberCount === 1 ? "1 member" : `${room.memberCount.toLocaleString()} members`;
    this.more.hidden = !room.membersMore;
    const members = [...room.members.values()].filter((m) => m.role !== "none");
    members.sort((a, b) => ORDER.indexOf(a.role) - ORDER.indexOf(b.role) || a.name.localeCompare(b.name));
    this.keyed.sync(this.list, members.map((member) => this.memberRow(room, member)));
  }

  private memberRow(room: RoomState, member: Member): { key: string; sig: string; make: () => HTMLElement } {
    const { store } = this;
    const { info } = room;
    const self = member.user === store.me.user;
    const roles = self || room.ended ? [] : mayGive(info.kind, info.role, member.role);
    const removable = !self && !room.ended && mayRemove(info.kind, info.role, member.role);
    return {
      key: `${info.room} ${member.user}`,
      sig: [member.name, member.role, roles.join(), removable].join("|"),
      make: () => {
        let role: HTMLElement | null = null;
        if (roles.length > 0) {
          const select = h("select", { "aria-label": `Role of ${member.name}`, "data-part": "role" }, ...roles.map((r) => h("option", { value: r, selected: r === member.role }, ROLE_NAMES[r])));
          select.addEventListener("change", () => {
            const wanted = select.value as Role;
            if (wanted !== "owner") {
              this.act(store.setRole(info.room, member.user, wanted));
              return;
            }
            select.value = member.role;
            confirmDialog("Hand the room over?", [bdi(member.name), " will be the owner, and you an admin."], "Hand over", () => store.setRole(info.room, member.user, "owner"));
          });
          role = select;
        } else if (info.kind !== "direct" && member.role !== "member") {
          role = h("span", { class: "role" }, ROLE_NAMES[member.role]);
        }
        return h(
          "li",
          {},
          avatar(member.user, initials(member.name), hue(member.user), "small"),
          h("span", { class: "grow" }, bdi(member.name), self ? h("span", { class: "soft" }, " (you)") : null),
          role,
          removable
            ? h(
                "button",
                {
                  class: "icon-button",
                  type: "button",
                  "data-part": "remove",
                  "aria-label": `Remove ${member.name}`,
                  title: "Remove",
                  click: () => confirmDialog("Remove from the room?", [bdi(member.name), " will not see what is written from now on."], "Remove", () => store.removeMember(info.room, member.user)),
                },
                icon("close"),
              )
            : null,
        );
      },
    };
  }
}
