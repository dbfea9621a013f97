// The admin page of a cluster that a node joins. Usage: ADMIN_TOKEN=… node e2e/admin-cluster.mjs OPS_URL [SCREENSHOT]
// The cluster has nodes a and b. Prints ADD-NODE, and END-NODE once the third is seen with its slots, and waits for a line on
// stdin after each.
import { once } from "node:events";
import { createInterface } from "node:readline";
import { check, eventually, run } from "./lib.mjs";

const [base, picture] = process.argv.slice(2);
const token = process.env.ADMIN_TOKEN;
if (!base || !token) {
  console.error("usage: ADMIN_TOKEN=… node e2e/admin-cluster.mjs OPS_URL [SCREENSHOT]");
  process.exit(64);
}
const url = base.replace(/\/$/, "");
const lines = createInterface({ input: process.stdin });
/** A joiner settles for two seconds before slots are moved to it; a machine may be busy. */
const MOVE_MS = 90_000;

async function tell(word) {
  const answered = once(lines, "line");
  console.log(word);
  await answered;
}

await run("admin-cluster", async ({ step, person }) => {
  const ops = await person(url, { viewport: { width: 1280, height: 1010 }, deviceScaleFactor: 1 });
  const { page } = ops;
  const owned = (node) => page.locator(`tr[data-node="${node}"] .share`).allInnerTexts().then(([text = "0"]) => Number(text.replaceAll(",", "")));
  const flown = () => page.locator(".ring").evaluate((element) => Number(element.dataset.flown ?? 0));

  await step("two nodes share the ring", async () => {
    await page.goto(`${url}/admin`);
    await page.getByLabel("Token").fill(token);
    await page.keyboard.press("Enter");
    await page.getByRole("button", { name: "b", exact: true }).waitFor();
    await eventually("each has its half", async () => (await owned("a")) === (await owned("b")) && (await owned("a")) > 0, MOVE_MS);
    await page.getByLabel("Room, user or slot").fill("general");
    await page.keyboard.press("Enter");
    await page.locator(".found dl").waitFor();
  });

  await step("a third one joins: slots are seen on their way, and fly to it", async () => {
    // the second one may have come a moment ago
    await eventually("nothing moves", async () => page.getByText(/ 0 moving(?!.*without)/).isVisible(), MOVE_MS);
    const all = (await owned("a")) + (await owned("b"));
    const before = await flown();
    await tell("ADD-NODE");
    await page.getByRole("button", { name: "c", exact: true }).waitFor({ timeout: MOVE_MS });
    await eventually("slots fly", async () => (await flown()) > before && (await owned("c")) > 0, MOVE_MS);
    // in mid-flight
    if (picture) await page.screenshot({ path: picture, fullPage: true });
    const third = Math.floor(all / 3);
    await eventually("it has its third", async () => (await owned("c")) >= third - 1 && (await page.getByText(/ 0 moving/).isVisible()), MOVE_MS);
    check((await owned("a")) + (await owned("b")) + (await owned("c")) === all, "slots are missing");
    await page.getByRole("status").getByText("Every slot is where it should be.").waitFor();
  });

  await step("it ends: its slots fly back", async () => {
    const before = await flown();
    await tell("END-NODE");
    await eventually("it has none", async () => (await page.locator('tr[data-node="c"]').count()) === 0 || (await owned("c")) === 0, MOVE_MS);
    await eventually("all slots have an owner", async () => page.getByText(/ 0 moving(?!.*without)/).isVisible(), MOVE_MS);
    check((await flown()) > before, "nothing flew");
  });
});
// Also after a failure: an open input keeps the process alive.
lines.close();
