// A page stays open while the server is killed and started again on the same port and data.
// Usage: node e2e/restart.mjs BASE_URL
// It prints KILL-NOW, waits for a line on stdin (the harness has killed the server), prints START-NOW, and waits for
// another line (the harness has started it again).
import { createInterface } from "node:readline";
import { acked, check, createRoom, eventually, message, run, say, signUp, suffix } from "./lib.mjs";

const [base] = process.argv.slice(2);
if (!base) {
  console.error("usage: node e2e/restart.mjs BASE_URL (prints KILL-NOW, then START-NOW; answer each with a line)");
  process.exit(64);
}
const url = base.replace(/\/$/, "");
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

async function harness(word) {
  console.log(word);
  const { done } = await lines.next();
  check(!done, `stdin ended while waiting for an answer to ${word}`);
}

await run("restart", async ({ step, person }) => {
  const tag = suffix();
  const ada = await person(url);
  const bob = await person(url);

  await step("two people are in a room", async () => {
    await signUp(ada.page, url, `ada-${tag}`, "Ada");
    await signUp(bob.page, url, `bob-${tag}`, "Bob");
    await createRoom(ada.page, "Workshop");
    await bob.page.goto(ada.page.url());
    await bob.page.getByRole("button", { name: "Join room" }).click();
    await bob.page.getByRole("heading", { name: "Workshop", level: 2 }).waitFor();
    await say(ada.page, "before the fall");
    await acked(ada.page, "before the fall");
    await message(bob.page, "before the fall").waitFor();
  });

  await step("both pages notice that the server is gone", async () => {
    ada.state.serverAway = true;
    bob.state.serverAway = true;
    await harness("KILL-NOW");
    for (const { page } of [ada, bob]) await page.locator(".banner", { hasText: /econnecting/ }).waitFor();
  });

  await step("what is written meanwhile waits in sight", async () => {
    await say(ada.page, "written while away, 1");
    await say(ada.page, "written while away, 2");
    await say(bob.page, "from the other side");
    check((await ada.page.locator(".msg.pending").count()) === 2, "two messages should wait on the first page");
    await message(ada.page, "written while away, 1").getByText("Waiting for the connection").waitFor();
    check((await message(ada.page, "before the fall").count()) === 1, "what was there should stay");
  });

  await step("the pages come back by themselves", async () => {
    await harness("START-NOW");
    for (const { page } of [ada, bob]) {
      await eventually("the banner goes", async () => !(await page.locator(".banner").isVisible()), 45_000);
    }
    ada.state.serverAway = false;
    bob.state.serverAway = false;
  });

  await step("everything is there exactly once, in one order on both pages", async () => {
    const texts = ["before the fall", "written while away, 1", "written while away, 2", "from the other side"];
    for (const { page } of [ada, bob]) {
      for (const text of texts) {
        await acked(page, text);
        check((await message(page, text).count()) === 1, `“${text}” should be there exactly once`);
      }
    }
    const order = (page) => page.locator(".msg .text").allInnerTexts();
    const [one, two] = [await order(ada.page), await order(bob.page)];
    check(JSON.stringify(one) === JSON.stringify(two), `the orders differ: ${one} / ${two}`);
    check(one.indexOf("written while away, 1") < one.indexOf("written while away, 2"), "own messages changed their order");
    check((await ada.page.locator(".gap").count()) === 0, "there is a gap");
    await say(bob.page, "after the fall");
    await message(ada.page, "after the fall").waitFor();
    await ada.page.reload();
    for (const text of [...texts, "after the fall"]) {
      await message(ada.page, text).waitFor();
      check((await message(ada.page, text).count()) === 1, `after a reload “${text}” should be there exactly once`);
    }
  });
});
lines.return?.();
process.stdin.destroy();
