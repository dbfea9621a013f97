//! Elements without markup: text only ever goes in as text nodes, so nothing that people write can become anything else.

import { isHeld, onRelease } from "./held.ts";

export type Child = Node | string | number | null | undefined | false;
type Value = string | number | boolean | undefined | null | ((event: never) => void);

function fill(element: Element, attributes: Record<string, Value>, children: Child[]): void {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value as EventListener);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    element.append(typeof child === "number" ? String(child) : child);
  }
}

/** `h("button", { class: "x", click: run }, "Text")`; a function is a listener for the event of that name. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, Value> = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  fill(element, attributes, children);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  plus: "M12 5v14M5 12h14",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM20 20l-4-4",
  back: "M15 5l-7 7 7 7",
  close: "M6 6l12 12M18 6L6 18",
  people: "M9 11.500a3.500 3.500 0 1 0 0-7 3.500 3.500 0 0 0 0 7zM2.500 19.500c.6-3.200 3.200-5 6.500-5s5.900 1.800 6.500 5M16 4.900a3.500 3.500 0 0 1 0 6.300M18.500 15c1.700.8 2.700 2.400 3 4.500",
  send: "M4.500 12L4 4.500 21 12 4 19.500 4.500 12zm0 0H12",
  reply: "M9 7L4 12l5 5M4 12h9a7 7 0 0 1 7 7",
  down: "M6 9l6 6 6-6",
  out: "M14 4h4a2 2 0 0 1 2 2v12a2 2 0 0 1-2 2h-4M10 8l-4 4 4 4M6 12h9",
  clock: "M12 3.500a8.500 8.500 0 1 0 0 17 8.500 8.500 0 0 0 0-17zM12 7.500V12l3 2",
  check: "M5 12.500l4.500 4.500L19 7.500",
  checks: "M2.500 12.500L7 17l8.500-9.500M11 16l1 1 9.500-9.500",
  alert: "M12 3.500a8.500 8.500 0 1 0 0 17 8.500 8.500 0 0 0 0-17zM12 8v5M12 16v.1",
  lock: "M6.500 11h11v8.500h-11zM8.500 11V8a3.500 3.500 0 0 1 7 0v3",
  hash: "M9.500 4L7.500 20M16.500 4l-2 16M4.500 9h16M3.500 15h16",
  horn: "M4 10v4h3l8 4.500v-13L7 10H4zM18.500 9a4.500 4.500 0 0 1 0 6",
  copy: "M9 9h10v11H9zM5 15V4h10",
  person: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM4.500 20c.8-3.600 3.800-5.500 7.500-5.500s6.700 1.900 7.500 5.500",
} as const;

export type IconName = keyof typeof ICONS;

export function icon(name: IconName, className = ""): SVGSVGElement {
  const svg = document.createElementNS(SVG, "svg");
  fill(svg, { viewBox: "0 0 24 24", class: `icon ${className}`.trim(), "aria-hidden": "true", focusable: "false" }, []);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

const TURNING = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu;

/** A name that turns neither the text around it nor itself. */
export const bdi = (name: string): HTMLElement => h("bdi", {}, name.replace(TURNING, ""));

/** A round picture of a name; says nothing to a screen reader, the name stands beside it. */
export function avatar(id: string, letters: string, hue: number, className = ""): HTMLElement {
  return h("span", { class: `avatar hue-${hue} ${className}`.trim(), "aria-hidden": "true", "data-for": id }, letters);
}

/** Makes the children of `parent` be `wanted`, moving and keeping what is there already. */
export function arrange(parent: Element, wanted: Element[]): void {
  const keep = new Set(wanted);
  for (const child of [...parent.children]) if (!keep.has(child)) child.remove();
  let at = parent.firstElementChild;
  for (const child of wanted) {
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
  }
}

/** Keeps the element of each key while its signature stays. While one of them is held down none is moved; `later` syncs again. */
export class Keyed {
  private elements = new Map<string, { sig: string; element: HTMLElement }>();

  constructor(private readonly later: () => void) {}

  sync(parent: Element, rows: { key: string; sig: string; make: () => HTMLElement }[]): void {
    if (isHeld(parent)) {
      onRelease(this.later);
      return;
    }
    const next = new Map<string, { sig: string; element: HTMLElement }>();
    const focused = document.activeElement;
    let refocus: { key: string; part: string | null } | null = null;
    for (const { key, sig, make } of rows) {
      const old = this.elements.get(key);
      if (old && old.sig === sig) {
        next.set(key, old);
        continue;
      }
      if (old && focused && old.element.contains(focused)) refocus = { key, part: focused.getAttribute("data-part") };
      next.set(key, { sig, element: make() });
    }
    this.elements = next;
    arrange(parent, [...next.values()].map((e) => e.element));
    if (refocus) {
      // a row that was made anew under the person's fingers keeps the focus
      const element = next.get(refocus.key)?.element;
      const part = refocus.part === null ? null : element?.querySelector<HTMLElement>(`[data-part="${refocus.part}"]`);
      (part ?? element)?.focus({ preventScroll: true });
    }
  }

  get(key: string): HTMLElement | undefined {
    return this.elements.get(key)?.element;
  }

  clear(): void {
    this.elements.clear();
  }
}
