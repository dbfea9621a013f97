// The admin page of a node that is alone. Usage: ADMIN_TOKEN=… node e2e/admin.mjs OPS_URL
// The last steps feed the page a ring of 65,536 slots whose slots move: no cluster is needed to see how it draws.
import { accessible, check, eventually, run } from "./lib.mjs";

const [base] = process.argv.slice(2);
const token = process.env.ADMIN_TOKEN;
if (!base || !token) {
  console.error("usage: ADMIN_TOKEN=… node e2e/admin.mjs OPS_URL");
  process.exit(64);
}
const url = base.replace(/\/$/, "");

async function enter(page, text) {
  await page.getByLabel("Token").fill(text);
  await page.keyboard.press("Enter");
}

/** The colour that is seen most around a place of the ring: a part of its outer radius, and of its turn. */
const colourAt = (page, radiusPart, turn) =>
  page.evaluate(
    ([part, at]) => {
      const AROUND = 7;
      const ring = document.querySelector(".ring canvas");
      const scale = ring.width / ring.clientWidth;
      const radius = (ring.clientWidth / 2 - 16) * part * scale;
      const angle = at * 2 * Math.PI - Math.PI / 2;
      const [x, y] = [ring.width / 2 + radius * Math.cos(angle), ring.height / 2 + radius * Math.sin(angle)].map((v) => Math.round(v) - 3);
      const copy = document.createElement("canvas");
      copy.width = copy.height = AROUND;
      const pen = copy.getContext("2d", { willReadFrequently: true });
      pen.drawImage(ring, x, y, AROUND, AROUND, 0, 0, AROUND, AROUND);
      const { data } = pen.getImageData(0, 0, AROUND, AROUND);
      const seen = new Map();
      for (let i = 0; i < data.length; i += 4) {
        const colour = data.slice(i, i + 3).join(",");
        if (data[i + 3] === 255) seen.set(colour, (seen.get(colour) ?? 0) + 1);
      }
      return [...seen].sort((one, other) => other[1] - one[1])[0]?.[0] ?? "nothing";
    },
    [radiusPart, turn],
  );

await run("admin", async ({ step, person }) => {
  const ops = await person(url);
  const { page } = ops;

  await step("the page asks for the token, and shows nothing without it", async () => {
    await page.goto(`${url}/admin`);
    await page.getByRole("heading", { name: "Banyan admin" }).waitFor();
    check((await page.locator("table, canvas").count()) === 0, "something is shown without the token");
    check((await page.getByLabel("Token").getAttribute("type")) === "password", "the token is shown while it is written");
    await accessible(page, "the door");
  });

  await step("a wrong token is refused in words and not kept", async () => {
    ops.state.refused = true;
    await enter(page, "not-the-token-of-this-node");
    await page.getByRole("alert").getByText("That is not the token of this node.").waitFor();
    ops.state.refused = false;
    check((await page.evaluate(() => sessionStorage.length + localStorage.length)) === 0, "the wrong token was kept");
  });

  await step("the right one opens the ring: all slots, one owner", async () => {
    await enter(page, token);
    const row = page.getByRole("row", { name: /^A?node-1/ });
    await row.waitFor();
    const text = await row.innerText();
    check(/4,096/.test(text) && /gateway, shard/.test(text) && /MiB/.test(text), `the row of the node says: ${text}`);
    await page.getByText("4,096 slots · 0 moving").waitFor();
    await page.getByRole("status").getByText("4096 slots on 1 node.").waitFor();
    for (const turn of [0.013, 0.21, 0.52, 0.77]) {
      await eventually(`the colour of node 0 at ${turn} of the ring`, async () => (await colourAt(page, 0.987, turn)) === "0,114,178");
    }
    check(!page.url().includes(token), "the token is in the address");
    check((await page.evaluate(() => sessionStorage.getItem("banyan.admin.token"))) === token, "the token is not in this tab");
    await accessible(page, "the ring");
  });

  await step("a room is found, by the keyboard alone", async () => {
    await page.getByRole("heading", { name: "Banyan admin" }).click();
    await page.keyboard.press("/");
    await page.keyboard.type("general");
    await page.keyboard.press("Enter");
    const found = page.locator(".found");
    await found.getByText("node-1").waitFor();
    check(/Slot\s+\d+/.test(await found.innerText()) && /it stays/.test(await found.innerText()), `it says: ${await found.innerText()}`);
    const slot = /Slot\s+(\d+)/.exec(await found.innerText())[1];
    for (const [asked, words] of [
      ["~ada", /Room\s+~ada[^]*Slot\s+\d+/],
      [`#${slot}`, new RegExp(`Slot ${slot}: owned by node-1\\.`)],
      ["#4096", /There is no slot 4096: this ring has 0 to 4095\./],
      ["", /Write a room’s id first\./],
    ]) {
      await page.getByLabel("Room, user or slot").fill(asked);
      await page.keyboard.press("Enter");
      await eventually(`${asked}: ${words}`, async () => words.test(await found.innerText()));
    }
    ops.state.refused = true;
    await page.getByLabel("Room, user or slot").fill("no room");
    await page.keyboard.press("Enter");
    await found.getByText(/^"no room": /).waitFor();
    ops.state.refused = false;
  });

  await step("an answer that comes after a newer question is not shown", async () => {
    let answer = () => undefined;
    const held = new Promise((resolve) => (answer = resolve));
    await page.route("**/admin/where?room=slow", async (route) => {
      await held;
      await route.continue();
    });
    const found = page.locator(".found");
    const look = async (asked) => {
      await page.getByLabel("Room, user or slot").fill(asked);
      await page.keyboard.press("Enter");
    };
    const late = page.waitForResponse((response) => response.url().endsWith("/admin/where?room=slow"));
    await look("slow");
    await look("#7");
    await found.getByText("Slot 7: owned by node-1.").waitFor();
    answer();
    await (await late).finished();
    await page.waitForResponse((response) => response.url().includes("/admin/ring.json")); // the page has had its turn since
    check((await found.innerText()) === "Slot 7: owned by node-1.", `it says: ${await found.innerText()}`);
    await page.unroute("**/admin/where?room=slow");
  });

  await step("a node is chosen and let go by the keyboard, and keeps the focus over a new answer", async () => {
    const button = page.getByRole("button", { name: "node-1" });
    await button.focus();
    await page.keyboard.press("Space");
    check((await button.getAttribute("aria-pressed")) === "true", "it is not chosen");
    await page.waitForResponse((response) => response.url().includes("/admin/ring.json"));
    check(await button.evaluate((element) => element === document.activeElement), "it has lost the focus");
    await page.keyboard.press("Escape");
    await eventually("it is let go", async () => (await button.getAttribute("aria-pressed")) === "false");
  });

  await step("a press during which the node's row changes gets its click", async () => {
    const button = page.getByRole("button", { name: "node-1" });
    const { x, y, width, height } = await button.boundingBox();
    await page.mouse.move(x + width / 2, y + height / 2);
    await page.mouse.down();
    await page.route("**/admin/ring.json*", async (route) => {
      const told = await (await route.fetch()).json();
      told.nodes[0].load = { ...told.nodes[0].load, connections: 4_321 };
      await route.fulfill({ json: told });
    });
    await page.getByRole("cell", { name: "4,321" }).waitFor();
    await page.mouse.up();
    await eventually("it is chosen", async () => (await button.getAttribute("aria-pressed")) === "true");
    await page.keyboard.press("Escape");
    await page.unroute("**/admin/ring.json*");
  });

  await step("what is asked again is small", async () => {
    const answer = await page.waitForResponse((response) => response.url().includes("since="));
    const told = await answer.json();
    check(told.slots.changed?.length === 0, `it was told ${JSON.stringify(told.slots).slice(0, 100)}`);
  });

  await step("a node that does not answer is told of, and so is its return", async () => {
    ops.state.serverAway = true;
    await page.route("**/admin/ring.json*", (route) => route.abort("connectionrefused"));
    await page.getByRole("alert").getByText(/The node does not answer\. What is shown is of \d\d:\d\d:\d\d\./).waitFor();
    await page.unroute("**/admin/ring.json*");
    await eventually("the words are gone", async () => (await page.getByRole("alert").count()) === 0);
    ops.state.serverAway = false;
  });

  await step("a page that is loaded while its node starts asks until it answers, and not for the token", async () => {
    ops.state.serverAway = ops.state.refused = true;
    await page.route("**/admin/ring.json*", (route) => route.abort("connectionrefused"));
    await page.reload();
    await page.getByRole("status").getByText("The node does not answer.").waitFor();
    await accessible(page, "the wait");
    await page.unroute("**/admin/ring.json*");
    await page.getByRole("button", { name: "node-1" }).waitFor();
    ops.state.serverAway = ops.state.refused = false;
  });

  await step("the tab keeps the token until it is told to forget it", async () => {
    await page.reload();
    await page.getByRole("button", { name: "node-1" }).waitFor();
    await page.getByRole("button", { name: "Forget the token" }).click();
    await page.getByLabel("Token").waitFor();
    check((await page.evaluate(() => sessionStorage.length)) === 0, "the token is still there");
  });

  const SLOTS = 65_536;
  const NODES = 10;
  /** A ring that nobody has: its first half is node 0's, then goes to node 9 in steps. */
  const fed = async (who, answers) => {
    let go = () => undefined;
    const begun = new Promise((resolve) => (go = resolve));
    const nodes = Array.from({ length: NODES }, (_, number) => ({
      number, node: `shard-${number}`, state: "up", roles: ["shard"], address: `10.0.0.${number}:7000`, release: "0.1.0", weight: 100,
      wanted: 0, owned: number === 0 ? SLOTS / 2 : 100, coming: 0, going: 0, load: null,
    }));
    const head = {
      cluster: "fed", node: "shard-0", standing: "up", fresh: true, frozen: false, target_version: 1,
      slot_count: SLOTS, without_owner: 0, pinned: 2, nodes,
    };
    const owner = Array.from({ length: SLOTS }, (_, slot) => (slot < SLOTS / 2 ? 0 : slot % NODES));
    let asked = 0;
    await who.page.route("**/admin/ring.json*", async (route) => {
      if (asked > 0) await begun; // the first answer stands until the test has seen it
      const version = `fed-0-${++asked}`;
      const moved = Math.min(asked - 1, answers);
      // 400 slots an answer, each said to be on its way in the answer before
      const going = moved < answers ? Array.from({ length: 400 }, (_, i) => [moved * 400 + i, 0, 9, 0]) : [];
      const gone = Array.from({ length: moved === 0 ? 0 : 400 }, (_, i) => [(moved - 1) * 400 + i, 9, 9, 0]);
      const slots = asked === 1 ? { all: { owner, wanted: owner, pinned: [7, 40_000] } } : { changed: [...gone, ...going] };
      return route.fulfill({ json: { ...head, version, moving: asked === 1 ? 0 : going.length, slots } });
    });
    await who.page.goto(`${url}/admin`);
    await enter(who.page, token);
    await who.page.getByRole("button", { name: "shard-9" }).waitFor();
    return go;
  };
  const flown = (who) => who.page.locator(".ring").evaluate((element) => Number(element.dataset.flown ?? 0));

  await step("65,536 slots of ten nodes are drawn, and those that move fly to their new owner", async () => {
    const who = await person(url, { colorScheme: "dark" });
    const go = await fed(who, 5);
    await eventually("the first slots are node 0's", async () => (await colourAt(who.page, 0.98, 0.01)) === "0,114,178");
    go();
    await eventually("slots fly", async () => (await flown(who)) > 0);
    await eventually("they are node 9's", async () => (await colourAt(who.page, 0.98, 0.01)) === "230,159,0");
    await who.page.getByRole("status").getByText(/slots are moving|where it should be/).waitFor();
    const drawn = await who.page.evaluate(async () => {
      const begun = performance.now();
      for (let i = 0; i < 10; i++) await new Promise(requestAnimationFrame);
      return performance.now() - begun;
    });
    check(drawn < 15_000, `ten pictures took ${Math.round(drawn)} ms`);
    await accessible(who.page, "the ring in the dark");
    await who.page.close();
  });

  await step("nothing flies where a person wants no motion", async () => {
    const who = await person(url, { reducedMotion: "reduce" });
    (await fed(who, 3))();
    await eventually("they are node 9's", async () => (await colourAt(who.page, 0.98, 0.01)) === "230,159,0");
    check((await flown(who)) === 0, "slots flew");
    await who.page.close();
  });

  await step("on a narrow screen nothing is cut off", async () => {
    const who = await person(url, { viewport: { width: 390, height: 800 } });
    (await fed(who, 1))();
    const wide = await who.page.evaluate(() => document.documentElement.scrollWidth);
    check(wide <= 390, `the page is ${wide} px wide`);
    await who.page.close();
  });
});
