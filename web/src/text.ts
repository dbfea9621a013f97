//! Text as the page shows it: links, names, days, initials. Pure.

/** Message text in pieces; only `link` becomes an anchor, and only to http, https and mailto. */
export type Piece = { text: string; link?: string; mention?: boolean };

const CANDIDATE = /(?:https?:\/\/|mailto:)[^\s<>"\u0000-\u001f\u007f]+|(?<![\p{L}\p{N}_@])@[\p{L}\p{N}_.-]+/giu;
const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const CLOSERS: Record<string, string> = { ")": "(", "]": "[", "}": "{" };

/** What follows a link in a sentence is not part of it. */
function withoutTail(candidate: string): string {
  let end = candidate.length;
  while (end > 0) {
    const c = candidate[end - 1] as string;
    const opener = CLOSERS[c];
    if (opener !== undefined) {
      const inside = candidate.slice(0, end);
      if (inside.split(opener).length >= inside.split(c).length) break;
    } else if (!".,;:!?'…*_~`".includes(c)) {
      break;
    }
    end--;
  }
  return candidate.slice(0, end);
}

export function pieces(text: string, isMention: (name: string) => boolean = () => false): Piece[] {
  const out: Piece[] = [];
  let done = 0;
  const plain = (to: number) => {
    if (to > done) out.push({ text: text.slice(done, to) });
    done = to;
  };
  for (const match of text.matchAll(CANDIDATE)) {
    const at = match.index;
    if (at < done) continue;
    if (match[0].startsWith("@")) {
      const name = match[0].slice(1).replace(/[.-]+$/u, "");
      if (!isMention(name)) continue;
      plain(at);
      done = at + 1 + name.length;
      out.push({ text: text.slice(at, done), mention: true });
      continue;
    }
    const shown = withoutTail(match[0]);
    let url: URL;
    try {
      url = new URL(shown);
    } catch {
      continue;
    }
    if (!SCHEMES.has(url.protocol)) continue;
    plain(at);
    done = at + shown.length;
    out.push({ text: shown, link: url.href });
  }
  plain(text.length);
  return out;
}

/** A name as one word of a mention: lower case, without spaces. */
export const mentionName = (name: string): string => name.toLowerCase().replace(/\s+/gu, "");

/** The users that `text` names with @, at most 50 (the server's bound). */
export function mentioned(text: string, people: Iterable<{ user: string; name: string }>): string[] {
  if (!text.includes("@")) return [];
  const byName = new Map<string, string>();
  for (const { user, name } of people) byName.set(mentionName(name), user);
  const users = new Set<string>();
  pieces(text, (name) => {
    const user = byName.get(mentionName(name));
    if (user !== undefined) users.add(user);
    return user !== undefined;
  });
  return [...users].slice(0, 50);
}

export function initials(name: string): string {
  const words = name.trim().split(/[\s._-]+/u).filter(Boolean);
  const letters = words.length > 1 ? [words[0], words.at(-1)] : [words[0]];
  return letters.map((w) => [...(w ?? "?")][0] ?? "?").join("").toUpperCase() || "?";
}

export const HUES = 8;

/** One of HUES colours, always the same for the same id. */
export function hue(id: string): number {
  let h = 2166136261;
  for (let i = 0; i < id.length; i++) h = Math.imul(h ^ id.charCodeAt(i), 16777619);
  h ^= h >>> 15; // the low bits alone know only the low bits of the text
  return (h >>> 0) % HUES;
}

export const utf8Length = (text: string): number => new TextEncoder().encode(text).length;

const dayKey = (at: number): string => {
  const d = new Date(at);
  return `${d.getFullYear()}-${d.getMonth()}-${d.getDate()}`;
};

export const sameDay = (a: number, b: number): boolean => dayKey(a) === dayKey(b);

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const DAY_AND_YEAR = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "long", year: "numeric" });
const SHORT_DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const SHORT_DATE = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });
const WEEKDAY = new Intl.DateTimeFormat(undefined, { weekday: "short" });
const FULL = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });

export const clock = (at: number): string => CLOCK.format(at);
export const fullTime = (at: number): string => FULL.format(at);

const DAY_MS = 86_400_000;

export function dayLabel(at: number, now: number): string {
  if (sameDay(at, now)) return "Today";
  if (sameDay(at, now - DAY_MS)) return "Yesterday";
  return Math.abs(now - at) < 300 * DAY_MS ? DAY.format(at) : DAY_AND_YEAR.format(at);
}

/** For the list of rooms: the shortest thing that still says when. */
export function shortTime(at: number, now: number): string {
  if (sameDay(at, now)) return CLOCK.format(at);
  if (now - at < 6 * DAY_MS) return WEEKDAY.format(at);
  return now - at < 300 * DAY_MS ? SHORT_DAY.format(at) : SHORT_DATE.format(at);
}

export const count = (n: number): string => (n > 999 ? "999+" : String(n));

/** The first words of a message on one line. */
export function excerpt(text: string, max = 100): string {
  const line = text.replace(/\s+/gu, " ").trim();
  const chars = [...line];
  return chars.length > max ? `${chars.slice(0, max - 1).join("")}…` : line;
}
