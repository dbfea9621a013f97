//! How nodes are told apart: a colour that the colour-blind can tell from the others (Okabe and Ito), beyond eight nodes a
//! pattern over it, and always a letter.

const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#8c8c8c"] as const;
export const PATTERNS = ["plain", "dot", "bar", "cross"] as const;
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

export type Mark = { colour: string; ink: string; pattern: (typeof PATTERNS)[number]; letter: string };

/** White or black, whichever is read better on a colour. */
function inkOn(colour: string): string {
  const part = (at: number) => {
    const value = Number.parseInt(colour.slice(at, at + 2), 16) / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  };
  const luminance = 0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5);
  return 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 ? "#ffffff" : "#000000";
}

export function mark(number: number): Mark {
  const colour = COLOURS[number % COLOURS.length] ?? COLOURS[0];
  const pattern = PATTERNS[Math.floor(number / COLOURS.length) % PATTERNS.length] ?? "plain";
  return { colour, ink: inkOn(colour), pattern, letter: LETTERS[number] ?? String(number) };
}
