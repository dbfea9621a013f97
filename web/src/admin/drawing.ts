//! The ring on a canvas: slots at the rim, their owners inside, what moves on its way between them.
//!
//! Owns: two canvases, one over the other: what stays, and what moves. Always holds: nothing is drawn while nothing moves; at
//! most FLIGHTS_MAX slots fly at once, the others change their colour only; without motion where a person wants none.

import { Geometry, HOLE } from "./geometry.ts";
import { mark } from "./marks.ts";
import { type Move, NOBODY, type Ring } from "./ring.ts";

const FLIGHTS_MAX = 600;
const FLIGHT_MS = 900;
/** Moves of one answer leave one after the other. */
const SPREAD_MS = 700;
const PULSE_MS = 900;
const MARGIN = 16;
/** Smallest cell that gets lines around it, in pixels. */
const LINED = 4;
/** By how much cells overlap that get none. */
const SEAM = 0.4;
/** Smallest cell whose pattern can be seen. */
const PATTERNED = 3;
/** Hubs that have their names beside them. */
const NAMED_MAX = 10;

type Flight = Move & { begins: number };
type Point = { x: number; y: number };
type Hub = Point & { radius: number; number: number };

export class Drawing {
  readonly element: HTMLElement;
  private readonly ground: HTMLCanvasElement;
  private readonly air: HTMLCanvasElement;
  private geometry = new Geometry(1, 100);
  private size = 0;
  private flights: Flight[] = [];
  private frame = 0;
  private chosen: number | null = null;
  private shown: number | null = null;
  private readonly still = matchMedia("(prefers-reduced-motion: reduce)");
  private readonly dark = matchMedia("(prefers-color-scheme: dark)");
  private readonly sized = new ResizeObserver(() => this.resize());
  private readonly again = (): void => this.redraw();
  private stopped = false;
  /** The pointer is over a slot, or has left. */
  onPoint: (slot: number | null) => void = () => undefined;

  constructor(
    private readonly ring: Ring,
    document: Document,
  ) {
    this.element = document.createElement("div");
    this.element.className = "ring";
    this.ground = document.createElement("canvas");
    this.air = document.createElement("canvas");
    for (const canvas of [this.ground, this.air]) {
      canvas.setAttribute("aria-hidden", "true");
      this.element.append(canvas);
    }
    this.sized.observe(this.element);
    for (const media of [this.dark, this.still]) media.addEventListener("change", this.again);
    this.air.addEventListener("pointermove", (event) => this.onPoint(this.slotUnder(event)));
    this.air.addEventListener("pointerleave", () => this.onPoint(null));
  }

  /** How many slots fly now, for whoever tests it. */
  get flying(): number {
    return this.flights.length;
  }

  /** Shows one node's slots before all others. */
  choose(number: number | null): void {
    this.chosen = number;
    this.redraw();
  }

  /** Points at a slot. */
  show(slot: number | null): void {
    this.shown = slot;
    this.wake();
  }

  changed({ touched, moves, whole }: { touched: number[]; moves: Move[]; whole: boolean }): void {
    if (this.geometry.slots !== this.ring.owner.length) this.resize();
    if (!this.still.matches) {
      const begins = performance.now();
      const flown = moves.filter((move) => move.from !== NOBODY && move.to !== NOBODY).slice(0, Math.max(FLIGHTS_MAX - this.flights.length, 0));
      const gap = SPREAD_MS / Math.max(flown.length, 1);
      flown.forEach((move, i) => this.flights.push({ ...move, begins: begins + i * gap }));
      this.element.dataset["flown"] = String(Number(this.element.dataset["flown"] ?? 0) + flown.length);
    }
    if (whole || touched.length > this.geometry.slots / 4) {
      this.redraw();
      return;
    }
    const pen = this.pen(this.ground);
    const colours = this.colours();
    if (pen) {
      for (const slot of touched) this.cell(pen, slot, this.ring.owner[slot] ?? NOBODY, colours);
      // their neighbours may have been drawn over the frames
      if (touched.length > 0) for (const slot of this.ring.pinned) this.pin(pen, slot, colours.text);
    }
    this.wake();
  }

  private resize(): void {
    const size = this.element.clientWidth;
    if (size === 0) return;
    this.size = size;
    this.geometry = new Geometry(Math.max(this.ring.owner.length, 1), size / 2 - MARGIN);
    const scale = Math.min(devicePixelRatio || 1, 2);
    for (const canvas of [this.ground, this.air]) {
      canvas.width = Math.round(size * scale);
      canvas.height = Math.round(size * scale);
    }
    this.redraw();
  }

  private slotUnder(event: PointerEvent): number | null {
    if (this.ring.owner.length === 0) return null;
    const box = this.air.getBoundingClientRect();
    return this.geometry.slotAt(event.clientX - box.left - this.size / 2, event.clientY - box.top - this.size / 2);
  }

  private pen(canvas: HTMLCanvasElement): CanvasRenderingContext2D | null {
    const pen = canvas.getContext("2d");
    const scale = canvas.width / Math.max(this.size, 1);
    pen?.setTransform(scale, 0, 0, scale, canvas.width / 2, canvas.height / 2);
    return pen;
  }

  private colours(): { text: string; soft: string; panel: string; empty: string } {
    const style = getComputedStyle(this.element);
    const of = (name: string) => style.getPropertyValue(name).trim();
    return { text: of("--text"), soft: of("--soft"), panel: of("--panel"), empty: of("--empty") };
  }

  // ------------------------------------------------------------ what stays

  private redraw(): void {
    const pen = this.pen(this.ground);
    if (!pen || this.size === 0) return;
    const { geometry, ring } = this;
    const colours = this.colours();
    pen.clearRect(-this.size / 2, -this.size / 2, this.size, this.size);
    if (ring.owner.length === 0) return;
    for (let track = 0; track < geometry.tracks; track++) {
      const { inner, outer } = geometry.track(track);
      for (const run of geometry.runs(track, (slot) => ring.owner[slot] ?? NOBODY)) {
        pen.globalAlpha = this.strength(run.look);
        pen.fillStyle = run.look === NOBODY ? colours.empty : mark(run.look).colour;
        slice(pen, inner, outer, run.from, run.to);
        pen.fill();
      }
    }
    pen.globalAlpha = 1;
    if (geometry.depth >= LINED) this.lines(pen, colours.panel);
    const patterned = ring.owners().some((node) => mark(node.number ?? 0).pattern !== "plain");
    if (patterned) for (let slot = 0; slot < ring.owner.length; slot++) this.pattern(pen, slot, ring.owner[slot] ?? NOBODY);
    for (const slot of ring.pinned) this.pin(pen, slot, colours.text);
    this.wake();
  }

  private strength(owner: number): number {
    return this.chosen === null || this.chosen === owner ? 1 : 0.16;
  }

  private lines(pen: CanvasRenderingContext2D, colour: string): void {
    const { geometry } = this;
    pen.strokeStyle = colour;
    pen.lineWidth = 0.8;
    pen.beginPath();
    for (let spoke = 0; spoke < geometry.spokes; spoke++) {
      const angle = geometry.angle(spoke);
      pen.moveTo(geometry.radius * HOLE * Math.cos(angle), geometry.radius * HOLE * Math.sin(angle));
      pen.lineTo(geometry.radius * Math.cos(angle), geometry.radius * Math.sin(angle));
    }
    for (let track = 1; track < geometry.tracks; track++) {
      const { outer } = geometry.track(track);
      pen.moveTo(outer, 0);
      pen.arc(0, 0, outer, 0, 2 * Math.PI);
    }
    pen.stroke();
  }

  /** One cell as `owner` would have it. */
  private cell(pen: CanvasRenderingContext2D, slot: number, owner: number, colours: { panel: string; empty: string; text: string }): void {
    const { inner, outer, from, to } = this.geometry.cell(slot);
    // cells without lines between them overlap a little, or the old colour would shine through the seams
    const seam = this.geometry.depth < LINED ? SEAM : 0;
    slice(pen, inner - seam, outer + seam, from - seam / outer, to + seam / outer);
    pen.fillStyle = colours.panel;
    pen.fill();
    pen.globalAlpha = this.strength(owner);
    pen.fillStyle = owner === NOBODY ? colours.empty : mark(owner).colour;
    pen.fill();
    pen.globalAlpha = 1;
    if (this.geometry.depth >= LINED) {
      pen.strokeStyle = colours.panel;
      pen.lineWidth = 0.8;
      pen.stroke();
    }
    this.pattern(pen, slot, owner);
    if (this.ring.pinned.has(slot)) this.pin(pen, slot, colours.text);
  }

  private pattern(pen: CanvasRenderingContext2D, slot: number, owner: number): void {
    if (owner === NOBODY || this.geometry.depth < PATTERNED) return;
    const { pattern, ink } = mark(owner);
    const { inner, outer, from, to } = this.geometry.cell(slot);
    if (pattern === "plain") return;
    const { x, y } = this.geometry.centre(slot);
    const reach = Math.min(outer - inner, ((to - from) * (inner + outer)) / 2) / 4;
    const angle = (from + to) / 2;
    pen.globalAlpha = this.strength(owner);
    pen.strokeStyle = pen.fillStyle = ink;
    pen.lineWidth = Math.max(reach / 2, 0.5);
    pen.beginPath();
    if (pattern === "dot") {
      pen.arc(x, y, reach * 0.7, 0, 2 * Math.PI);
      pen.fill();
    } else {
      for (const turn of pattern === "cross" ? [Math.PI / 4, -Math.PI / 4] : [0]) {
        const [dx, dy] = [reach * 1.3 * Math.cos(angle + turn), reach * 1.3 * Math.sin(angle + turn)];
        pen.moveTo(x - dx, y - dy);
        pen.lineTo(x + dx, y + dy);
      }
      pen.stroke();
    }
    pen.globalAlpha = 1;
  }

  /** A tick outside the rim, and a frame. */
  private pin(pen: CanvasRenderingContext2D, slot: number, colour: string): void {
    const { inner, outer, from, to } = this.geometry.cell(slot);
    pen.strokeStyle = pen.fillStyle = colour;
    pen.lineWidth = 1.4;
    slice(pen, inner, outer, from, to);
    pen.stroke();
    const [angle, rim] = [(from + to) / 2, this.geometry.radius];
    pen.beginPath();
    pen.moveTo((rim + 2) * Math.cos(angle), (rim + 2) * Math.sin(angle));
    for (const side of [-0.012, 0.012]) pen.lineTo((rim + 9) * Math.cos(angle + side), (rim + 9) * Math.sin(angle + side));
    pen.fill();
  }

  // ------------------------------------------------------------ what moves

  /** It is not seen any more. */
  stop(): void {
    this.stopped = true;
    cancelAnimationFrame(this.frame);
    this.sized.disconnect();
    for (const media of [this.dark, this.still]) media.removeEventListener("change", this.again);
  }

  private wake(): void {
    if (this.frame !== 0 || this.stopped) return;
    this.frame = requestAnimationFrame((now) => {
      this.frame = 0;
      this.paint(now);
    });
  }

  private hubs(): Hub[] {
    const owners = this.ring.owners();
    const most = Math.max(...owners.map((node) => node.owned), 1);
    const orbit = owners.length === 1 ? 0 : this.geometry.radius * HOLE * 0.62;
    const largest = Math.min(this.geometry.radius * 0.1, (orbit * Math.PI) / Math.max(owners.length, 1) || Infinity);
    return owners.map((node, i) => {
      const angle = (i / owners.length) * 2 * Math.PI - Math.PI / 2;
      const radius = largest * (0.45 + 0.55 * Math.sqrt(node.owned / most));
      return { x: orbit * Math.cos(angle), y: orbit * Math.sin(angle), radius, number: node.number ?? 0 };
    });
  }

  private paint(now: number): void {
    const pen = this.pen(this.air);
    if (!pen || this.size === 0) return;
    pen.clearRect(-this.size / 2, -this.size / 2, this.size, this.size);
    if (this.ring.owner.length === 0) return;
    const colours = this.colours();
    const hubs = this.hubs();
    this.flights = this.flights.filter((flight) => now < flight.begins + FLIGHT_MS);
    let moving = false;
    if ((this.ring.told?.moving ?? 0) > 0) {
      const beat = this.still.matches ? 0.75 : 0.5 + 0.5 * Math.sin((now / PULSE_MS) * 2 * Math.PI);
      for (let slot = 0; slot < this.ring.owner.length; slot++) {
        if (!this.ring.isMoving(slot)) continue;
        moving = true;
        this.waiting(pen, slot, beat);
      }
    }
    for (const flight of this.flights) {
      if (now < flight.begins) this.cell(pen, flight.slot, flight.from, colours);
    }
    for (const flight of this.flights) this.fly(pen, flight, (now - flight.begins) / FLIGHT_MS, hubs);
    for (const hub of hubs) this.hub(pen, hub, colours, hubs.length);
    if (this.shown !== null && this.shown < this.ring.owner.length) this.point(pen, this.shown, colours.text, hubs);
    if (this.flights.length > 0 || (moving && !this.still.matches)) this.wake();
  }

  /** A slot that goes elsewhere shows inside where. */
  private waiting(pen: CanvasRenderingContext2D, slot: number, beat: number): void {
    const { inner, outer, from, to } = this.geometry.cell(slot);
    const edge = (outer - inner) * 0.22;
    const turn = (to - from) * 0.22;
    slice(pen, inner + edge, outer - edge, from + turn, to - turn);
    pen.globalAlpha = 0.5 + 0.5 * beat;
    pen.fillStyle = mark(this.ring.wanted[slot] ?? 0).colour;
    pen.fill();
    pen.globalAlpha = 1;
  }

  private hub(pen: CanvasRenderingContext2D, hub: Hub, colours: { text: string; soft: string; panel: string }, count: number): void {
    const { colour, ink, letter } = mark(hub.number);
    pen.globalAlpha = this.strength(hub.number) < 1 ? 0.3 : 1;
    pen.beginPath();
    pen.arc(hub.x, hub.y, hub.radius, 0, 2 * Math.PI);
    pen.fillStyle = colour;
    pen.fill();
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillStyle = ink;
    pen.font = `650 ${Math.max(hub.radius * 0.9, 9)}px ${FONT}`;
    pen.fillText(letter, hub.x, hub.y + 1);
    if (count <= NAMED_MAX) {
      pen.fillStyle = colours.text;
      pen.font = `600 12px ${FONT}`;
      pen.fillText(cut(this.ring.name(hub.number)), hub.x, hub.y + hub.radius + 11);
      pen.fillStyle = colours.soft;
      pen.font = `11px ${FONT}`;
      const owned = this.ring.owners().find((node) => node.number === hub.number)?.owned ?? 0;
      pen.fillText(owned.toLocaleString("en"), hub.x, hub.y + hub.radius + 25);
    }
    pen.globalAlpha = 1;
  }

  /** From the old owner to the new one, bent towards its place at the rim. */
  private fly(pen: CanvasRenderingContext2D, flight: Flight, part: number, hubs: Hub[]): void {
    if (part < 0) return;
    const from = hubs.find((hub) => hub.number === flight.from);
    const to = hubs.find((hub) => hub.number === flight.to);
    const place = this.geometry.centre(flight.slot);
    const t = part < 0.5 ? 2 * part * part : 1 - 2 * (1 - part) * (1 - part);
    const { x, y } = curve(from ?? place, { x: place.x * 0.7, y: place.y * 0.7 }, to ?? place, t);
    const size = Math.max(this.geometry.depth * 0.55, 2.5);
    pen.beginPath();
    pen.arc(x, y, size, 0, 2 * Math.PI);
    pen.fillStyle = mark(t < 0.5 ? flight.from : flight.to).colour;
    pen.fill();
    // and its cell fades from the one to the other
    const { inner, outer, from: begin, to: end } = this.geometry.cell(flight.slot);
    slice(pen, inner, outer, begin, end);
    pen.globalAlpha = 1 - part;
    pen.fillStyle = mark(flight.from).colour;
    pen.fill();
    pen.globalAlpha = 1;
  }

  private point(pen: CanvasRenderingContext2D, slot: number, colour: string, hubs: Hub[]): void {
    const { inner, outer, from, to } = this.geometry.cell(slot);
    const middle = (from + to) / 2;
    const wide = Math.max(to - from, 10 / this.geometry.radius);
    const deep = Math.max(outer - inner, 8);
    pen.strokeStyle = colour;
    pen.lineWidth = 2;
    slice(pen, (inner + outer - deep) / 2 - 2, (inner + outer + deep) / 2 + 2, middle - wide / 2, middle + wide / 2);
    pen.stroke();
    const owner = hubs.find((hub) => hub.number === this.ring.owner[slot]);
    if (!owner) return;
    const place = this.geometry.centre(slot);
    const far = Math.hypot(place.x - owner.x, place.y - owner.y);
    const edge = owner.radius / Math.max(far, 1);
    pen.lineWidth = 1;
    pen.setLineDash([4, 4]);
    pen.beginPath();
    pen.moveTo(owner.x + (place.x - owner.x) * edge, owner.y + (place.y - owner.y) * edge);
    pen.lineTo(place.x, place.y);
    pen.stroke();
    pen.setLineDash([]);
  }
}

const FONT = 'Inter, system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif';

const cut = (name: string): string => (name.length > 14 ? `${name.slice(0, 13)}…` : name);

function slice(pen: CanvasRenderingContext2D, inner: number, outer: number, from: number, to: number): void {
  pen.beginPath();
  pen.arc(0, 0, Math.max(outer, 0), from, to);
  pen.arc(0, 0, Math.max(inner, 0), to, from, true);
  pen.closePath();
}

function curve(from: Point, by: Point, to: Point, t: number): Point {
  const of = (a: number, b: number, c: number) => (1 - t) * (1 - t) * a + 2 * (1 - t) * t * b + t * t * c;
  return { x: of(from.x, by.x, to.x), y: of(from.y, by.y, to.y) };
}
