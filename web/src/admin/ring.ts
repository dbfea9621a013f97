//! What is known of the ring: whole at first, then by what changed. Knows neither the document nor the network.

/** Rates are null until the node has been looked at twice within a few seconds. */
export type Load = { connections: number; rooms: number; sends_per_s: number | null; cpu: number | null; memory_bytes: number };

export type RingNode = {
  /** Its colour and letter; null: it is nobody who could have slots. */
  number: number | null;
  node: string;
  state: string;
  roles: string[];
  address: string | null;
  release: string | null;
  weight: number | null;
  wanted: number;
  owned: number;
  coming: number;
  going: number;
  load: Load | null;
};

type All = { all: { owner: number[]; wanted: number[]; pinned: number[] } };
type Changed = { changed: [slot: number, owner: number, wanted: number, pinned: number][] };

/** `/admin/ring.json`. */
export type Told = {
  version: string;
  cluster: string | null;
  node: string;
  standing: string;
  fresh: boolean;
  frozen: boolean;
  target_version: number | null;
  slot_count: number;
  moving: number;
  without_owner: number;
  pinned: number;
  nodes: RingNode[];
  slots: All | Changed;
};

/** A slot whose owner is another one now; -1: nobody. */
export type Move = { slot: number; from: number; to: number };

export const NOBODY = -1;

export class Ring {
  told: Told | null = null;
  owner = new Int32Array(0);
  wanted = new Int32Array(0);
  pinned = new Set<number>();

  /** What was told last, for the next question. */
  get version(): string | null {
    return this.told?.version ?? null;
  }

  /** Takes an answer; says which slots look different, and which of them have another owner. */
  apply(told: Told): { touched: number[]; moves: Move[]; whole: boolean } {
    const touched: number[] = [];
    const moves: Move[] = [];
    let whole = false;
    const set = (slot: number, owner: number, wanted: number, pinned: boolean) => {
      const from = this.owner[slot] ?? NOBODY;
      if (from !== owner) moves.push({ slot, from, to: owner });
      if (from !== owner || this.wanted[slot] !== wanted || this.pinned.has(slot) !== pinned) touched.push(slot);
      this.owner[slot] = owner;
      this.wanted[slot] = wanted;
      if (pinned) this.pinned.add(slot);
      else this.pinned.delete(slot);
    };
    if ("all" in told.slots) {
      const { owner, wanted, pinned } = told.slots.all;
      whole = true;
      this.owner = Int32Array.from(owner);
      this.wanted = Int32Array.from(wanted);
      this.pinned = new Set(pinned);
    } else {
      for (const [slot, owner, wanted, pinned] of told.slots.changed) {
        if (slot < this.owner.length) set(slot, owner, wanted, pinned === 1);
      }
    }
    this.told = told;
    return { touched, moves, whole };
  }

  isMoving(slot: number): boolean {
    const owner = this.owner[slot] ?? NOBODY;
    const wanted = this.wanted[slot] ?? NOBODY;
    return owner !== NOBODY && wanted !== NOBODY && owner !== wanted;
  }

  /** Who can have slots, by number. */
  owners(): RingNode[] {
    const nodes = this.told?.nodes.filter((node) => node.number !== null) ?? [];
    return nodes.sort((a, b) => (a.number ?? 0) - (b.number ?? 0));
  }

  name(number: number): string {
    if (number === NOBODY) return "nobody";
    return this.told?.nodes.find((node) => node.number === number)?.node ?? "a node that is gone";
  }
}

const slots = (count: number): string => (count === 1 ? "1 slot" : `${count} slots`);

/** What a person would want to hear of the step from one answer to the next, in whole sentences. */
export function news(before: Told | null, now: Told): string[] {
  const said: string[] = [];
  if (!before) {
    const owners = now.nodes.filter((node) => node.owned > 0).length;
    said.push(`${slots(now.slot_count)} on ${owners === 1 ? "1 node" : `${owners} nodes`}.`);
  } else {
    const old = new Map(before.nodes.map((node) => [node.node, node]));
    for (const node of now.nodes) {
      const was = old.get(node.node);
      if (!was) said.push(`Node ${node.node} has joined.`);
      else if (was.state !== node.state) said.push(`Node ${node.node} is ${node.state}.`);
      old.delete(node.node);
    }
    for (const name of old.keys()) said.push(`Node ${name} is gone.`);
    if (before.frozen !== now.frozen) said.push(now.frozen ? "The ring is frozen: no slot changes its owner." : "The ring is no longer frozen.");
    if (before.fresh !== now.fresh) said.push(now.fresh ? "etcd answers again." : "etcd does not answer: what is shown may be old.");
  }
  if (now.without_owner > 0 && (before?.without_owner ?? 0) === 0) said.push(`${slots(now.without_owner)} without an owner.`);
  if (before && before.without_owner > 0 && now.without_owner === 0) said.push("Every slot has an owner.");
  if (now.moving > 0 && (before?.moving ?? 0) === 0) said.push(now.moving === 1 ? "1 slot is moving." : `${now.moving} slots are moving.`);
  if (before && before.moving > 0 && now.moving === 0 && now.without_owner === 0) said.push("Every slot is where it should be.");
  return said;
}
