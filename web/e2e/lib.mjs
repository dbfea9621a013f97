// What the browser tests share: the browser, watched pages, signing up, and words for failures.
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const PATHS = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome", "/usr/bin/google-chrome-stable"];
const ARGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
export const STEP_TIMEOUT_MS = 15_000;

export async function launch() {
  const executablePath = process.env.CHROMIUM || PATHS.find((path) => existsSync(path));
  if (!executablePath) {
    throw new Error("no Chromium found: `apt-get install -y --no-install-recommends chromium`, or set CHROMIUM to its path");
  }
  return chromium.launch({ executablePath, args: ARGS });
}

/** A page of its own user; everything that it complains about is kept in `complaints`. */
export async function person(browser, base, options = {}) {
  const context = await browser.newContext({
    viewport: { width: 1280, height: 800 },
    locale: "en-GB",
    timezoneId: "Europe/Berlin",
    colorScheme: "light",
    ...options,
  });
  const page = await context.newPage();
  page.setDefaultTimeout(STEP_TIMEOUT_MS);
  const complaints = [];
  /** While set, a connection that is refused is no complaint: the server is away on purpose; or an answer of 4xx: it is asked for. */
  const state = { serverAway: false, refused: false };
  page.on("console", (message) => {
    if (!["error", "warning"].includes(message.type())) return;
    if (state.serverAway && /WebSocket|ERR_CONNECTION/.test(message.text())) return;
    if (state.refused && /status of 4\d\d/.test(message.text())) return;
    complaints.push(`${message.type()}: ${message.text()}`);
  });
  page.on("pageerror", (error) => complaints.push(`page error: ${error.message}`));
  page.on("requestfailed", (request) => {
    if (!state.serverAway && request.failure()?.errorText !== "net::ERR_ABORTED") complaints.push(`request failed: ${request.url()}`);
  });
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== new URL(base).origin) complaints.push(`asked a third party: ${request.url()}`);
  });
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`));
  });
  return { page, context, complaints, state };
}

/** Unique in a server that is used again. */
export const suffix = () => Math.random().toString(36).slice(2, 7);

export async function signUp(page, base, username, displayName, hash = "") {
  await page.goto(`${base}/${hash}`);
  await page.getByRole("button", { name: "Create an account" }).click();
  await page.getByLabel("User name").fill(username);
  await page.getByLabel("Display name").fill(displayName);
  await page.getByLabel("Password").fill("correct horse battery staple");
  await page.getByRole("button", { name: "Create account" }).click();
  await page.getByText("Connected", { exact: true }).waitFor();
}

export async function createRoom(page, name, { isPublic = true, people = "" } = {}) {
  await page.getByRole("button", { name: "Create a room" }).first().click();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel("Name", { exact: true }).fill(name);
  if (isPublic) await dialog.getByLabel(/^Public/).check();
  if (people) await dialog.getByLabel(/^People/).fill(people);
  await dialog.getByRole("button", { name: "Create room" }).click();
  await page.getByRole("heading", { name, level: 2 }).waitFor();
}

export const log = (page) => page.getByRole("log");
export const message = (page, text) => log(page).locator(".msg", { hasText: text });

/** By the keyboard alone. */
export async function say(page, text) {
  await page.getByRole("textbox", { name: /^Message/ }).focus();
  await page.keyboard.type(text);
  await page.keyboard.press("Enter");
}

/** Waits until own `text` has been taken by the server. */
export async function acked(page, text) {
  await message(page, text).and(page.locator(":not(.pending)")).waitFor();
}

/** axe-core's rules, those that a machine can judge. */
export async function accessible(page, where) {
  const require = createRequire(import.meta.url);
  await page.evaluate(readFileSync(require.resolve("axe-core/axe.min.js"), "utf8"));
  const found = await page.evaluate(async () => {
    const result = await globalThis.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"] });
    return result.violations.map((v) => `${v.id}: ${v.help} (${v.nodes.map((n) => n.target.join(" ")).slice(0, 3).join(", ")})`);
  });
  check(found.length === 0, `accessibility of ${where}: ${found.join("; ")}`);
}

export function check(condition, what) {
  if (!condition) throw new Error(what);
}

export async function eventually(what, probe, timeoutMs = STEP_TIMEOUT_MS) {
  const end = Date.now() + timeoutMs;
  for (;;) {
    const value = await probe();
    if (value) return value;
    if (Date.now() > end) throw new Error(`not within ${timeoutMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Runs named steps; on failure `FAILURE_DIR` keeps the words of it as `NAME.txt`, and a picture of every page. */
export async function run(name, body) {
  const browser = await launch();
  const people = [];
  let passed = 0;
  const step = async (what, act) => {
    await act();
    passed++;
    console.log(`ok ${passed} - ${what}`);
  };
  try {
    await body({
      step,
      person: async (base, options) => {
        const one = await person(browser, base, options);
        people.push(one);
        return one;
      },
    });
    for (const { complaints } of people) check(complaints.length === 0, `the page complained:\n  ${complaints.join("\n  ")}`);
    console.log(`${name}: ${passed} steps passed`);
  } catch (error) {
    const words = [`${name}: failed after step ${passed}: ${error.stack ?? error}`];
    for (const [i, { complaints }] of people.entries()) {
      if (complaints.length > 0) words.push(`page ${i + 1} complained:\n  ${complaints.join("\n  ")}`);
    }
    console.error(words.join("\n"));
    if (process.env.FAILURE_DIR) writeFileSync(`${process.env.FAILURE_DIR}/${name}.txt`, words.join("\n"));
    for (const [i, { page }] of people.entries()) {
      if (process.env.FAILURE_DIR) await page.screenshot({ path: `${process.env.FAILURE_DIR}/${name}-${i + 1}.png` }).catch(() => undefined);
    }
    process.exitCode = 1;
  } finally {
    await browser.close();
  }
}
