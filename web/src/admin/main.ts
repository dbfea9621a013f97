//! The admin page: asks the node for the ring again and again, draws it, says what changed, finds rooms.
//!
//! Owns: the token (in sessionStorage, gone with the tab) and the questions: one at a time, none while nobody looks.

import { h } from "../view/dom.ts";
import { Drawing } from "./drawing.ts";
import { mark } from "./marks.ts";
import { type Load, NOBODY, Ring, type RingNode, type Told, news } from "./ring.ts";

const TOKEN = "banyan.admin.token";
const CALM_MS = 1_000;
const BUSY_MS = 400;
const FAILED_MS = 2_000;
const ANSWER_MS = 5_000;
/** What a screen reader is told comes at most so often, the newest first. */
const SAID_EVERY_MS = 3_000;
const SAID_MAX = 4;

type Found = {
  room: string;
  slot: number;
  owner: { node: string; epoch: number; address: string | null } | null;
  last_owner: { node: string; epoch: number } | null;
  wanted: string | null;
  pinned: boolean;
};

/** The node said no, and why. */
class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly waitMs: number,
  ) {
    super(message);
  }
}

async function ask<T>(path: string, token: string): Promise<T> {
  const answer = await fetch(path, {
    headers: { Authorization: `Bearer ${token}` },
    cache: "no-store",
    credentials: "omit",
    signal: AbortSignal.timeout(ANSWER_MS),
  });
  if (answer.ok) return (await answer.json()) as T;
  const text = await answer.text();
  let words = text.trim();
  try {
    words = (JSON.parse(text) as { error?: string }).error ?? words;
  } catch {
    // the words as they are
  }
  throw new Refused(answer.status, words, Number(answer.headers.get("retry-after") ?? 0) * 1_000);
}

/** A swatch that looks as the node's slots do. */
function swatch(number: number): HTMLElement {
  const { colour, ink, pattern, letter } = mark(number);
  const element = h("span", { class: `swatch p-${pattern}`, "aria-hidden": "true" }, letter);
  element.style.setProperty("--colour", colour);
  element.style.setProperty("--ink", ink);
  return element;
}

const count = (value: number): string => value.toLocaleString("en");

function bytes(value: number): string {
  const mib = value / (1 << 20);
  return mib >= 1024 ? `${(mib / 1024).toFixed(1)} GiB` : `${Math.round(mib)} MiB`;
}

// ---------------------------------------------------------------- without a token

function askForToken(words: string): void {
  const problem = h("p", { class: "problem", role: "alert" });
  const field = h("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true, maxlength: 256 });
  const button = h("button", { class: "primary", type: "submit" }, "Show the ring");
  const form = h(
    "form",
    {
      class: "door",
      submit: async (event: Event) => {
        event.preventDefault();
        const token = field.value.trim();
        if (token === "") return;
        button.disabled = true;
        problem.textContent = "";
        try {
          const told = await ask<Told>("/admin/ring.json", token);
          keep(token);
          showRing(token, told);
        } catch (error) {
          problem.textContent = why(error);
          button.disabled = false;
          field.select();
        }
      },
    },
    h("h1", {}, "Banyan admin"),
    h("p", { class: "soft" }, "The token is what this node has as ", h("code", {}, "server.admin_token"), ". It stays in this tab."),
    problem,
    h("label", { for: "token" }, "Token"),
    field,
    button,
  );
  document.body.replaceChildren(h("main", { class: "alone" }, form));
  problem.textContent = words; // once it is in the document, so that it is read out
  field.focus();
}

function why(error: unknown): string {
  if (error instanceof Refused) {
    if (error.status === 401) return "That is not the token of this node.";
    return error.message === "" ? `The node answered ${error.status}.` : `${error.message[0]?.toUpperCase()}${error.message.slice(1)}`;
  }
  return "The node does not answer.";
}

// ---------------------------------------------------------------- the ring

const COLUMNS = ["Node", "State", "Slots", "Target", "Moving", "Weight", "Connections", "Rooms open", "Sends/s", "CPU", "Memory", "Roles", "Address", "Release"];

class View {
  private readonly ring = new Ring();
  private readonly drawing = new Drawing(this.ring, document);
  private readonly head = h("p", { class: "soft cluster" });
  private readonly badge = h("span", { class: "badge" });
  private readonly summary = h("p", { class: "summary", id: "summary" });
  private readonly problem = h("p", { class: "problem", role: "alert" });
  private readonly status = h("p", { class: "news", role: "status" });
  private readonly rows = h("tbody");
  private readonly slotLine = h("p", { class: "soft slot-line" });
  private readonly found = h("div", { class: "found", role: "status" });
  private readonly field = h("input", { id: "room", autocomplete: "off", spellcheck: "false", maxlength: 130, "aria-describedby": "room-help" });
  private drawn = new Map<string, { sig: string; row: HTMLElement }>();
  private chosen: string | null = null;
  private timer = 0;
  private asking = false;
  private over = false;
  private unsaid: string[] = [];
  private saidAt = -SAID_EVERY_MS;
  private sayTimer = 0;
  private answeredAt = new Date();
  readonly element: HTMLElement;

  constructor(
    private readonly token: string,
    first: Told,
  ) {
    this.drawing.onPoint = (slot) => this.point(slot);
    this.element = h(
      "div",
      { class: "page" },
      h(
        "header",
        {},
        h("div", {}, h("h1", {}, "Banyan admin"), this.head),
        this.badge,
        h("button", { type: "button", click: () => this.leave("") }, "Forget the token"),
      ),
      this.problem,
      h(
        "main",
        {},
        h(
          "section",
          { class: "figure", "aria-labelledby": "ring-title" },
          h("h2", { id: "ring-title" }, "Ring"),
          this.summary,
          h("div", { role: "img", "aria-label": "The ring, each slot in its owner’s colour. The table says the same.", "aria-describedby": "summary" }, this.drawing.element),
          this.slotLine,
        ),
        h(
          "div",
          { class: "side" },
          h(
            "section",
            { "aria-labelledby": "find-title" },
            h("h2", { id: "find-title" }, "Where is a room?"),
            h(
              "form",
              {
                class: "find",
                role: "search",
                submit: (event: Event) => {
                  event.preventDefault();
                  void this.find(this.field.value.trim());
                },
              },
              h("label", { for: "room" }, "Room, user or slot"),
              h("div", { class: "line" }, this.field, h("button", { class: "primary", type: "submit" }, "Find")),
              h("p", { class: "soft small", id: "room-help" }, "A room’s id, ~USER for a user’s channel, or #SLOT."),
            ),
            this.found,
          ),
          h("section", { "aria-labelledby": "news-title" }, h("h2", { id: "news-title" }, "What happens"), this.status, this.legend()),
        ),
        h(
          "section",
          { class: "nodes", "aria-labelledby": "nodes-title" },
          h("h2", { id: "nodes-title" }, "Nodes"),
          h(
            "div",
            { class: "scroll", tabindex: "0", role: "group", "aria-label": "Table of nodes" },
            h("table", {}, h("thead", {}, h("tr", {}, ...COLUMNS.map((name) => h("th", { scope: "col" }, name)))), this.rows),
          ),
          h("p", { class: "soft small" }, "Choose a node to see its slots alone. Each node measures what it bears itself and shows it on its own ops port."),
        ),
      ),
    );
    document.addEventListener("visibilitychange", this.wake);
    document.addEventListener("keydown", this.key);
    this.take(first);
    this.again(CALM_MS);
  }

  private legend(): HTMLElement {
    const line = (kind: string, words: string) => h("li", {}, h("span", { class: `sample ${kind}`, "aria-hidden": "true" }), words);
    return h(
      "ul",
      { class: "legend" },
      line("moving", "a slot on its way: outside its owner, inside where it goes"),
      line("pinned", "a slot that is pinned to its node"),
      line("empty", "a slot without an owner"),
    );
  }

  private readonly wake = (): void => {
    if (document.visibilityState === "visible") this.again(0);
    else clearTimeout(this.timer);
  };

  private readonly key = (event: KeyboardEvent): void => {
    if (event.key === "Escape" && this.chosen !== null) this.choose(null);
    if (event.key === "/" && !(event.target instanceof HTMLInputElement)) {
      event.preventDefault();
      this.field.focus();
    }
  };

  private again(afterMs: number): void {
    clearTimeout(this.timer);
    if (!this.over) this.timer = window.setTimeout(() => void this.look(), afterMs);
  }

  private async look(): Promise<void> {
    if (this.over || this.asking || document.visibilityState === "hidden") return;
    this.asking = true;
    let next = CALM_MS;
    try {
      const since = this.ring.version;
      const told = await ask<Told>(`/admin/ring.json${since === null ? "" : `?${new URLSearchParams({ since })}`}`, this.token);
      this.take(told);
      if (told.moving > 0) next = BUSY_MS;
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        this.leave("This node no longer takes the token.");
        return;
      }
      const words = `${why(error)} What is shown is of ${this.answeredAt.toLocaleTimeString("en-GB")}.`;
      if (this.problem.textContent !== words) this.problem.textContent = words;
      next = Math.max(error instanceof Refused ? error.waitMs : 0, FAILED_MS);
    } finally {
      this.asking = false;
    }
    this.again(next);
  }

  private leave(words: string): void {
    if (this.over) return;
    this.over = true;
    clearTimeout(this.timer);
    clearTimeout(this.sayTimer);
    this.drawing.stop();
    document.removeEventListener("visibilitychange", this.wake);
    document.removeEventListener("keydown", this.key);
    keep(null);
    askForToken(words);
  }

  private take(told: Told): void {
    const before = this.ring.told;
    const changes = this.ring.apply(told);
    this.answeredAt = new Date();
    if (this.problem.textContent !== "") this.problem.textContent = "";
    this.drawing.changed(changes);
    if (this.chosen !== null && !told.nodes.some(({ node }) => node === this.chosen)) this.choose(null);
    this.say(news(before, told));
    const cluster = told.cluster === null ? "A node that is alone" : `Cluster ${told.cluster}`;
    this.head.textContent = `${cluster}, seen by ${told.node}`;
    const [standing, good] = told.frozen ? ["frozen", false] : told.fresh ? [told.standing, told.standing === "up"] : ["etcd does not answer", false];
    this.badge.textContent = standing;
    this.badge.classList.toggle("bad", !good);
    const parts = [`${count(told.slot_count)} slots`, `${count(told.moving)} moving`];
    if (told.pinned > 0) parts.push(`${count(told.pinned)} pinned`);
    if (told.without_owner > 0) parts.push(`${count(told.without_owner)} without an owner`);
    if (told.target_version !== null) parts.push(`target version ${told.target_version}`);
    this.summary.textContent = parts.join(" · ");
    this.table(told);
  }

  // ------------------------------------------------------------ nodes

  private table(told: Told): void {
    const next = new Map<string, { sig: string; row: HTMLElement }>();
    const byShare = [...told.nodes].sort((a, b) => (a.number ?? Infinity) - (b.number ?? Infinity) || (a.node < b.node ? -1 : 1));
    for (const node of byShare) {
      const sig = JSON.stringify([node, told.slot_count, this.chosen === node.node, told.node === node.node]);
      const old = this.drawn.get(node.node);
      next.set(node.node, old?.sig === sig ? old : { sig, row: this.row(node, told, old?.row) });
    }
    for (const [name, { row }] of this.drawn) if (!next.has(name)) row.remove();
    this.drawn = next;
    let at = this.rows.firstElementChild;
    for (const { row } of next.values()) {
      if (row === at) at = at.nextElementSibling;
      else this.rows.insertBefore(row, at);
    }
  }

  /** What names a node; its button stays the same one: a press that is under way gets its click, and it keeps the focus. */
  private name(head: HTMLElement, { node, number }: RingNode): void {
    if (head.dataset["number"] !== String(number)) {
      head.dataset["number"] = String(number);
      head.replaceChildren(
        number === null
          ? h("span", { class: "name" }, h("span", { class: "swatch none", "aria-hidden": "true" }), node)
          : h("button", { type: "button", class: "name", click: () => this.choose(this.chosen === node ? null : node) }, swatch(number), node),
      );
    }
    head.querySelector("button")?.setAttribute("aria-pressed", String(this.chosen === node));
  }

  private row(node: RingNode, told: Told, old: HTMLElement | undefined): HTMLElement {
    const load = (of: (load: Load) => string) => (node.load ? of(node.load) : "–");
    const bar = h("span", { class: "bar", "aria-hidden": "true" });
    bar.style.setProperty("--part", String(node.owned / Math.max(told.slot_count, 1)));
    bar.style.setProperty("--colour", mark(node.number ?? 0).colour);
    const moving = [node.coming > 0 ? `+${count(node.coming)}` : "", node.going > 0 ? `−${count(node.going)}` : ""].filter((part) => part !== "");
    const cells: (string | HTMLElement)[] = [
      node.state,
      h("span", { class: "share" }, bar, count(node.owned)),
      told.target_version === null ? "–" : count(node.wanted),
      moving.length > 0 ? moving.join(" ") : "–",
      node.weight === null ? "–" : count(node.weight),
      load((load) => count(load.connections)),
      load((load) => count(load.rooms)),
      load(({ sends_per_s: sends }) => (sends === null ? "–" : sends.toFixed(sends < 10 ? 1 : 0))),
      load(({ cpu }) => (cpu === null ? "–" : `${Math.round(cpu * 100)} %`)),
      load((load) => bytes(load.memory_bytes)),
      node.roles.length > 0 ? node.roles.join(", ") : "–",
      node.address ?? "–",
      node.release ?? "–",
    ];
    const numbers = new Set([1, 2, 3, 4, 5, 6, 7, 8, 9]);
    const head = old?.querySelector("th") ?? h("th", { scope: "row" });
    const row = old ?? h("tr", { "data-node": node.node }, head);
    this.name(head, node);
    row.classList.toggle("off", node.state !== "up");
    while (row.lastElementChild !== head) row.lastElementChild?.remove();
    row.append(...cells.map((cell, i) => h("td", { class: numbers.has(i) ? "number" : "" }, cell)));
    return row;
  }

  private choose(node: string | null): void {
    this.chosen = node;
    const told = this.ring.told;
    this.drawing.choose(told?.nodes.find((other) => other.node === node)?.number ?? null);
    if (told) this.table(told);
  }

  // ------------------------------------------------------------ slots and rooms

  private slotWords(slot: number): string {
    const { ring } = this;
    const owner = ring.owner[slot] ?? NOBODY;
    const wanted = ring.wanted[slot] ?? NOBODY;
    let words = `Slot ${slot}: ${owner === NOBODY ? "no owner" : `owned by ${ring.name(owner)}`}`;
    if (wanted !== NOBODY && wanted !== owner) words += `, on its way to ${ring.name(wanted)}`;
    return ring.pinned.has(slot) ? `${words}, pinned` : words;
  }

  private point(slot: number | null): void {
    this.drawing.show(slot ?? this.foundSlot);
    this.slotLine.textContent = slot === null ? "" : this.slotWords(slot);
  }

  private foundSlot: number | null = null;
  /** How often something was looked for: an answer that comes after a newer question is not shown. */
  private finds = 0;

  private async find(text: string): Promise<void> {
    const slot = /^#\s*(\d{1,5})$/.exec(text)?.[1];
    const mine = ++this.finds;
    const say = (...children: (string | HTMLElement)[]) => this.found.replaceChildren(...children.map((child) => (typeof child === "string" ? h("p", {}, child) : child)));
    this.foundSlot = null;
    try {
      if (text === "") {
        say("Write a room’s id first.");
      } else if (slot !== undefined) {
        const number = Number(slot);
        if (number < this.ring.owner.length) this.foundSlot = number;
        say(this.foundSlot === null ? `There is no slot ${number}: this ring has 0 to ${this.ring.owner.length - 1}.` : `${this.slotWords(number)}.`);
      } else {
        const found = await ask<Found>(`/admin/where?${new URLSearchParams({ room: text })}`, this.token);
        if (this.over || mine !== this.finds) return;
        this.foundSlot = found.slot;
        say(this.place(found));
      }
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        this.leave("This node no longer takes the token.");
        return;
      }
      if (this.over || mine !== this.finds) return;
      say(why(error));
    }
    this.drawing.show(this.foundSlot);
  }

  private place(found: Found): HTMLElement {
    const line = (name: string, value: string | HTMLElement) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
    const { owner, last_owner, wanted } = found;
    const number = this.ring.told?.nodes.find((node) => node.node === owner?.node)?.number ?? null;
    const who = owner ? h("span", { class: "name" }, number === null ? "" : swatch(number), owner.node) : `nobody${last_owner ? ` (it was ${last_owner.node})` : ""}`;
    const here = owner?.node ?? null;
    const going = here === null ? (wanted === null ? "nobody is to take it" : `to be taken by ${wanted}`) : wanted === null || wanted === here ? "it stays" : `on its way to ${wanted}`;
    return h(
      "dl",
      {},
      line("Room", found.room),
      line("Slot", String(found.slot)),
      line("Owner", who),
      line("Address", owner?.address ?? "–"),
      line("Epoch", String(owner?.epoch ?? last_owner?.epoch ?? "–")),
      line("Moving", `${going}${found.pinned ? ", pinned" : ""}`),
    );
  }

  // ------------------------------------------------------------ news

  private say(sentences: string[]): void {
    this.unsaid.push(...sentences);
    if (this.unsaid.length === 0 || this.sayTimer !== 0) return;
    const wait = Math.max(this.saidAt + SAID_EVERY_MS - performance.now(), 0);
    this.sayTimer = window.setTimeout(() => {
      this.sayTimer = 0;
      this.saidAt = performance.now();
      this.status.textContent = this.unsaid.slice(-SAID_MAX).join(" ");
      this.unsaid = [];
    }, wait);
  }
}

function showRing(token: string, first: Told): void {
  document.body.replaceChildren(new View(token, first).element);
}

/** Without storage the token lives as long as the page. */
function keep(token: string | null): void {
  try {
    if (token === null) sessionStorage.removeItem(TOKEN);
    else sessionStorage.setItem(TOKEN, token);
  } catch {
    // switched off
  }
}

function kept(): string | null {
  try {
    return sessionStorage.getItem(TOKEN);
  } catch {
    return null;
  }
}

/** With the token that this tab has: a node that is not up yet is asked again, until it is forgotten. */
function resume(token: string): void {
  let over = false;
  let timer = 0;
  const forget = (words: string): void => {
    over = true;
    clearTimeout(timer);
    keep(null);
    askForToken(words);
  };
  const look = async (): Promise<void> => {
    try {
      const told = await ask<Told>("/admin/ring.json", token);
      if (!over) showRing(token, told);
    } catch (error) {
      if (over) return;
      if (error instanceof Refused && error.status === 401) {
        forget(why(error));
        return;
      }
      waitForNode(why(error), () => forget(""));
      timer = window.setTimeout(() => void look(), Math.max(error instanceof Refused ? error.waitMs : 0, FAILED_MS));
    }
  };
  void look();
}

function waitForNode(words: string, forget: () => void): void {
  const said = document.querySelector(".waiting");
  if (said) {
    if (said.textContent !== words) said.textContent = words;
    return;
  }
  const line = h("p", { class: "waiting", role: "status" });
  const main = h(
    "main",
    { class: "alone" },
    h("div", { class: "door" }, h("h1", {}, "Banyan admin"), line, h("p", { class: "soft" }, "It is asked again until it answers."), h("button", { type: "button", click: forget }, "Forget the token")),
  );
  document.body.replaceChildren(main);
  line.textContent = words; // once it is in the document, so that it is read out
}

const token = kept();
if (token === null) askForToken("");
else resume(token);
