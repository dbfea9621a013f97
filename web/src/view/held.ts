//! What is held down: a button or link that is replaced or moved between the press and the release gets no click.
//!
//! Owns: which one it is, and what waits for its release. Always holds: it is released at the latest by the next movement of
//! a pointer with no button down, the next press, or when the page loses the keyboard.

let held: Element | null = null;
const waiting = new Set<() => void>();

/** Whether it is held, or something in it. */
export const isHeld = (element: Element): boolean => held !== null && element.contains(held);

/** Runs once what is held is released, and has got its click. */
export function onRelease(run: () => void): void {
  waiting.add(run);
}

function hold(event: Event): void {
  const pressed = event.target instanceof Element ? event.target.closest("a, button") : null;
  if (pressed === null) return;
  // also where the release of the one before was never seen: a menu of the browser may take it
  held = pressed;
}

function release(): void {
  if (held === null) return;
  const was = held;
  // after the click: of a mouse and of the keyboard it comes in the same turn as the release
  setTimeout(() => {
    if (held !== was) return;
    held = null;
    const runs = [...waiting];
    waiting.clear();
    for (const run of runs) run();
  });
}

const silent = { capture: true, passive: true };
addEventListener("pointerdown", (event) => event.button === 0 && hold(event), silent);
addEventListener("keydown", (event) => event.key === " " && !event.repeat && hold(event), silent);
for (const end of ["pointerup", "pointercancel", "keyup", "dragstart"]) addEventListener(end, release, silent);
// not of elements: a press takes the focus from where it was
addEventListener("blur", (event) => event.target === window && release());
addEventListener("pointermove", (event) => event.buttons === 0 && release(), silent);
