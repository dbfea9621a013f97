// Reading back in a long room. Usage: node e2e/scroll.mjs BASE_URL
// Fills a room over HTTP as fast as the server's own limits let it, then scrolls: nothing jumps, the document stays small.
import { check, createRoom, eventually, log, run, signUp, suffix } from "./lib.mjs";

const [base] = process.argv.slice(2);
if (!base) {
  console.error("usage: node e2e/scroll.mjs BASE_URL");
  process.exit(64);
}
const url = base.replace(/\/$/, "");
const WANTED = 300;
/** Below this the window of rows would never move. */
const NEEDED = 150;
const FILL_MS = 60_000;
const ROWS_MAX = 300;
const STEP_PX = 400;

await run("scroll", async ({ step, person }) => {
  const tag = suffix();
  const ada = await person(url);
  const bob = await person(url);
  let written = 0;

  await step("two people fill a room", async () => {
    await signUp(ada.page, url, `ada-${tag}`, "Ada");
    await signUp(bob.page, url, `bob-${tag}`, "Bob");
    await createRoom(ada.page, "Long room");
    const room = ada.page.url().split("/#/room/")[1];
    await bob.page.goto(`${url}/#/room/${room}`);
    await bob.page.getByRole("button", { name: "Join room" }).click();
    await bob.page.getByRole("heading", { name: "Long room", level: 2 }).waitFor();
    await bob.page.goto(`${url}/#/`);
    const end = Date.now() + FILL_MS;
    const fill = async ({ page }, who) => {
      const token = await page.evaluate(() => JSON.parse(localStorage.getItem("banyan.login")).token);
      for (let i = 1; i <= WANTED / 2 && Date.now() < end; ) {
        const response = await fetch(`${url}/v1/messages`, {
          method: "POST",
          headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
          body: JSON.stringify({ room, client_msg_id: `${who}-${i}`, text: `${who} ${i} ${"leaves and roots ".repeat((i * 7) % 9)}` }),
        });
        if (response.ok) {
          i++;
          written++;
          continue;
        }
        const { code, retry_after_ms } = await response.json();
        check([108, 111, 112].includes(code), `filling the room was refused with ${code}`);
        await new Promise((resolve) => setTimeout(resolve, retry_after_ms ?? 200));
      }
    };
    await Promise.all([fill(ada, "ada"), fill(bob, "bob")]);
    check(written >= NEEDED, `only ${written} messages could be written in ${FILL_MS / 1000} s`);
  });

  const { page } = bob;
  await step("the room that was not open counts them, and opens at what is new", async () => {
    const entry = page.getByRole("navigation", { name: "Rooms" }).getByRole("link", { name: /Long room/ });
    await entry.locator(".badge").waitFor();
    await entry.click();
    await log(page).locator(".msg").first().waitFor();
  });

  const sight = () =>
    page.evaluate(() => {
      const scroller = document.querySelector(".scroller");
      const top = scroller.getBoundingClientRect().top;
      const rows = Object.fromEntries([...scroller.querySelectorAll(".msg")].map((r) => [r.dataset.key, r.getBoundingClientRect().top - top]));
      return { rows, count: scroller.querySelectorAll(".row").length };
    });

  await step("scrolling to the beginning never moves what one reads, and keeps the document small", async () => {
    await page.getByRole("log").focus();
    for (let i = 0; i < 400; i++) {
      // measured in one turn of the page: only what the page does by itself later may count as a jump
      const before = await page.evaluate((px) => {
        const scroller = document.querySelector(".scroller");
        scroller.scrollTop -= px;
        const top = scroller.getBoundingClientRect().top;
        return Object.fromEntries([...scroller.querySelectorAll(".msg")].map((r) => [r.dataset.key, r.getBoundingClientRect().top - top]));
      }, STEP_PX);
      await page.waitForTimeout(30);
      const { rows, count } = await sight();
      check(count <= ROWS_MAX, `${count} rows in the document`);
      const reading = Object.keys(before).find((key) => before[key] > 0);
      check(reading === undefined || has(rows, reading), "the row that was in sight is gone");
      if (reading !== undefined) {
        const moved = Math.abs(rows[reading] - before[reading]);
        check(moved <= 2, `what was in sight jumped by ${moved} px`);
      }
      if (await log(page).getByText("created the room").isVisible()) return;
    }
    throw new Error("the beginning of the room was not reached");
  });

  await step("the button leads back to the newest message", async () => {
    await page.getByRole("button", { name: /^Go to the newest message/ }).click();
    const last = log(page).locator(".msg").last();
    await eventually("the end is in sight", async () => {
      const box = await last.boundingBox();
      return box !== null && box.y + box.height < 800 && (await page.locator(".jump").isHidden());
    });
    check((await log(page).locator('[data-seq="3"]').count()) === 0, "rows far away should have left the document");
  });
});

function has(rows, key) {
  return Object.hasOwn(rows, key);
}
