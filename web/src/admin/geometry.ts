//! Where each slot lies: slots run round the ring, some side by side from the rim inwards, so that a cell is about square
//! however many there are.

/** Of the outer radius: where the cells end inwards. */
export const HOLE = 0.6;

export type Cell = { inner: number; outer: number; from: number; to: number };

export class Geometry {
  readonly tracks: number;
  readonly spokes: number;

  constructor(
    readonly slots: number,
    /** Of the rim, in pixels. */
    readonly radius: number,
  ) {
    const square = Math.sqrt((slots * (1 - HOLE)) / (Math.PI * (1 + HOLE)));
    // both powers of two, as the count of slots is
    this.tracks = Math.min(Math.max(2 ** Math.round(Math.log2(Math.max(square, 1))), 1), Math.max(slots, 1));
    this.spokes = Math.max(slots / this.tracks, 1);
  }

  /** Width of a track in pixels. */
  get depth(): number {
    return (this.radius * (1 - HOLE)) / this.tracks;
  }

  track(track: number): { inner: number; outer: number } {
    const outer = this.radius - track * this.depth;
    return { inner: outer - this.depth, outer };
  }

  angle(spoke: number): number {
    return (spoke / this.spokes) * 2 * Math.PI - Math.PI / 2;
  }

  cell(slot: number): Cell {
    const spoke = Math.floor(slot / this.tracks);
    return { ...this.track(slot % this.tracks), from: this.angle(spoke), to: this.angle(spoke + 1) };
  }

  /** From the ring's centre. */
  centre(slot: number): { x: number; y: number } {
    const { inner, outer, from, to } = this.cell(slot);
    const [radius, angle] = [(inner + outer) / 2, (from + to) / 2];
    return { x: radius * Math.cos(angle), y: radius * Math.sin(angle) };
  }

  /** The slot at a point, from the ring's centre. */
  slotAt(x: number, y: number): number | null {
    const radius = Math.hypot(x, y);
    const track = Math.floor((this.radius - radius) / this.depth);
    if (radius > this.radius || track < 0 || track >= this.tracks) return null;
    const turn = (Math.atan2(y, x) + Math.PI / 2) / (2 * Math.PI);
    const spoke = Math.floor((turn < 0 ? turn + 1 : turn) * this.spokes) % this.spokes;
    return spoke * this.tracks + track;
  }

  /** Neighbours of one track that look alike, as one arc each. */
  runs<T>(track: number, look: (slot: number) => T): { look: T; from: number; to: number }[] {
    const runs: { look: T; from: number; to: number }[] = [];
    for (let spoke = 0; spoke < this.spokes; spoke++) {
      const here = look(spoke * this.tracks + track);
      const last = runs.at(-1);
      if (last && last.look === here) last.to = this.angle(spoke + 1);
      else runs.push({ look: here, from: this.angle(spoke), to: this.angle(spoke + 1) });
    }
    return runs;
  }
}
