// Two people in two browsers talk. Usage: node e2e/two-pages.mjs BASE_URL [SCREENSHOT.png]
import { accessible, acked, check, createRoom, eventually, log, message, run, say, signUp, suffix } from "./lib.mjs";

const [base, screenshot] = process.argv.slice(2);
if (!base) {
  console.error("usage: node e2e/two-pages.mjs BASE_URL [SCREENSHOT.png]");
  process.exit(64);
}
const url = base.replace(/\/$/, "");

await run("two-pages", async ({ step, person }) => {
  const tag = suffix();
  const ada = await person(url);
  const bob = await person(url);
  const room = "Banyan garden";
  let link = "";

  await step("the sign-in page is accessible and tells a wrong password in words", async () => {
    await ada.page.goto(url);
    await accessible(ada.page, "the sign-in page");
    await ada.page.getByLabel("User name").fill(`nobody-${tag}`);
    await ada.page.getByLabel("Password").fill("wrong password");
    await ada.page.getByRole("button", { name: "Sign in" }).click();
    await eventually("a word about the refusal", async () => (await ada.page.getByRole("alert").innerText()).length > 3);
    // the browser itself notes the 401 in its console
    const noise = ada.complaints.splice(0);
    check(noise.every((c) => c.includes("401")), `unexpected: ${noise.join("; ")}`);
  });

  await step("two people sign up", async () => {
    await signUp(ada.page, url, `ada-${tag}`, "Ada Lovelace");
    await signUp(bob.page, url, `bob-${tag}`, "Bob Stone");
  });

  await step("one makes a public room, the other joins by its link", async () => {
    await createRoom(ada.page, room);
    link = ada.page.url();
    check(/#\/room\/[A-Za-z0-9._:-]+$/.test(link), `no link to the room: ${link}`);
    await bob.page.goto(link);
    await bob.page.getByRole("button", { name: "Join room" }).click();
    await bob.page.getByRole("heading", { name: room, level: 2 }).waitFor();
    await log(ada.page).getByText("Bob Stone joined").waitFor();
  });

  await step("they talk both ways, by the keyboard alone", async () => {
    await say(ada.page, "Good morning, Bob. Is the tree growing?");
    await acked(ada.page, "Is the tree growing?");
    await message(bob.page, "Is the tree growing?").waitFor();
    await say(bob.page, "It is: one trunk for every core, and shade for everybody.");
    await message(ada.page, "one trunk for every core").waitFor();
    await say(bob.page, "Notes are at https://example.org/banyan.");
    const anchor = message(ada.page, "Notes are at").getByRole("link");
    check((await anchor.getAttribute("href")) === "https://example.org/banyan", "the link is wrong");
    check((await anchor.getAttribute("rel")) === "noopener noreferrer nofollow", "the link's rel is wrong");
  });

  await step("the sender learns that it was seen", async () => {
    await bob.page.bringToFront();
    await message(ada.page, "Is the tree growing?").getByRole("img", { name: "Seen" }).waitFor();
  });

  await step("what people write stays text", async () => {
    const evil = `<img src=x onerror="document.title='owned'"><script>1</script> javascript:alert(1)`;
    await say(bob.page, evil);
    await message(ada.page, "onerror").waitFor();
    check((await message(ada.page, "onerror").locator(".text").innerText()) === evil, "the text was changed");
    check((await message(ada.page, "onerror").locator(".text *").count()) === 0, "the text became elements");
    check(!(await ada.page.title()).includes("owned"), "a script ran");
  });

  await step("a message that comes while one page is reloaded is there once", async () => {
    const reloaded = ada.page.reload();
    await say(bob.page, "This came while you were away.");
    await reloaded;
    await message(ada.page, "while you were away").waitFor();
    await acked(bob.page, "while you were away");
    await say(bob.page, "Welcome back!");
    await message(ada.page, "Welcome back!").waitFor();
    for (const text of ["Is the tree growing?", "one trunk for every core", "while you were away", "Welcome back!"]) {
      check((await message(ada.page, text).count()) === 1, `“${text}” is not there exactly once`);
    }
  });

  await step("a room that is not open counts what is unread, and opening it clears the count", async () => {
    await createRoom(ada.page, "Roots and soil", { isPublic: false, people: `bob-${tag}` });
    await say(ada.page, "A quiet room for the two of us.");
    await acked(ada.page, "A quiet room");
    await say(bob.page, "First unread.");
    await say(bob.page, "Second unread.");
    await acked(bob.page, "Second unread.");
    const entry = ada.page.getByRole("navigation", { name: "Rooms" }).getByRole("link", { name: new RegExp(room) });
    await entry.locator(".badge", { hasText: /^2/ }).waitFor();
    await eventually("the last message in the list", async () => (await entry.innerText()).includes("Second unread."));
    check((await ada.page.title()).startsWith("(2)"), `the title does not count: ${await ada.page.title()}`);
    await entry.click();
    await log(ada.page).getByText("New messages").waitFor();
    await entry.locator(".badge").waitFor({ state: "detached" });
  });

  await step("a press during which the room's line changes gets its click", async () => {
    const rooms = ada.page.getByRole("navigation", { name: "Rooms" });
    await rooms.getByRole("link", { name: /Roots and soil/ }).click();
    await ada.page.getByRole("heading", { name: "Roots and soil", level: 2 }).waitFor();
    const { x, y, width, height } = await rooms.getByRole("link", { name: new RegExp(room) }).boundingBox();
    await ada.page.mouse.move(x + width / 2, y + height / 2);
    await ada.page.mouse.down();
    await say(bob.page, "While you press.");
    await eventually("the message has come", async () => (await ada.page.title()).startsWith("(1)"));
    await ada.page.mouse.up();
    await ada.page.getByRole("heading", { name: room, level: 2 }).waitFor();
    await message(ada.page, "While you press.").waitFor();
    await eventually("its line is new", async () => (await rooms.getByRole("link", { name: new RegExp(room) }).innerText()).includes("While you press."));
  });

  await step("the switcher opens rooms by the keyboard", async () => {
    await ada.page.keyboard.press("Control+k");
    await ada.page.getByRole("combobox").waitFor();
    await ada.page.keyboard.type("roots");
    await ada.page.keyboard.press("Enter");
    await ada.page.getByRole("heading", { name: "Roots and soil", level: 2 }).waitFor();
    await ada.page.keyboard.press("Control+k");
    await ada.page.keyboard.press("Escape");
    await ada.page.getByRole("dialog").waitFor({ state: "detached" });
  });

  await step("a direct chat by user name, a reply, and a line break", async () => {
    await ada.page.keyboard.press("Control+k");
    await ada.page.keyboard.type(`bob-${tag}`);
    await ada.page.getByRole("option", { name: /Direct chat with/ }).click();
    await ada.page.getByRole("heading", { name: "Bob Stone", level: 2 }).waitFor();
    await ada.page.getByRole("textbox", { name: /^Message/ }).focus();
    await ada.page.keyboard.type("Two lines:");
    await ada.page.keyboard.press("Shift+Enter");
    await ada.page.keyboard.type("this is the second.");
    await ada.page.keyboard.press("Enter");
    await acked(ada.page, "Two lines:");
    const entry = bob.page.getByRole("navigation", { name: "Rooms" }).getByRole("link", { name: /^Ada Lovelace/ });
    await entry.click();
    await message(bob.page, "Two lines:").waitFor();
    await message(bob.page, "Two lines:").hover();
    await message(bob.page, "Two lines:").getByRole("button", { name: /^Reply/ }).click();
    await bob.page.keyboard.type("Both arrived.");
    await bob.page.keyboard.press("Enter");
    await message(ada.page, "Both arrived.").locator(".quote", { hasText: "Two lines:" }).waitFor();
  });

  await step("members, roles and the name of a room", async () => {
    await ada.page.goto(link);
    await ada.page.getByRole("heading", { name: room, level: 2 }).waitFor();
    await ada.page.getByRole("button", { name: "Room details" }).click();
    const details = ada.page.getByRole("complementary", { name: "Room details" });
    await details.getByLabel("Role of Bob Stone").selectOption("admin");
    await log(ada.page).getByText("You made Bob Stone an admin").waitFor();
    await details.getByLabel("Name", { exact: true }).fill("The banyan garden");
    await details.getByRole("button", { name: "Save" }).click();
    await bob.page.getByRole("link", { name: /The banyan garden/ }).waitFor();
    await accessible(ada.page, "a room with its details");
  });

  await step("the page is accessible in the dark and on a phone", async () => {
    await bob.page.emulateMedia({ colorScheme: "dark" });
    await accessible(bob.page, "a room in the dark");
    await bob.page.setViewportSize({ width: 360, height: 740 });
    check(await bob.page.evaluate(() => document.documentElement.scrollWidth <= 360), "the page is wider than a phone");
    await accessible(bob.page, "a room on a phone");
    await bob.page.getByRole("link", { name: "Back to the rooms" }).click();
    await bob.page.getByRole("navigation", { name: "Rooms" }).waitFor();
    await bob.page.setViewportSize({ width: 1280, height: 800 });
  });

  await step("a person who is removed is told so, and comes back by the link", async () => {
    await bob.page.goto(link);
    await bob.page.getByRole("heading", { name: "The banyan garden", level: 2 }).waitFor();
    const details = ada.page.getByRole("complementary", { name: "Room details" });
    await details.getByRole("button", { name: "Remove Bob Stone" }).click();
    await ada.page.getByRole("dialog").getByRole("button", { name: "Remove" }).click();
    await bob.page.getByText("You are no longer a member of this room.").waitFor();
    await log(bob.page).getByText("removed you").waitFor();
    await bob.page.goto(`${url}/#/`);
    await bob.page.goto(link);
    const name = details.getByLabel("Name", { exact: true });
    await name.fill("Half a na");
    await bob.page.getByRole("button", { name: "Join room" }).click();
    await details.getByText("2 members").waitFor();
    check((await name.inputValue()) === "Half a na", "the name that was being written is gone");
    check(await name.evaluate((element) => element === document.activeElement), "the field has lost the focus");
    await name.fill("The banyan garden");
    await message(bob.page, "one trunk for every core").waitFor(); // what was before is there again
    await say(bob.page, "Here again.");
    await message(ada.page, "Here again.").waitFor();
  });

  if (screenshot) {
    await step("the picture", async () => {
      await scene(ada, bob, tag, screenshot);
    });
  }

  await step("signing out ends it here, and other tabs with it", async () => {
    const other = await ada.context.newPage();
    await other.goto(url);
    await other.getByText("Connected", { exact: true }).waitFor();
    await ada.page.bringToFront();
    await ada.page.getByRole("button", { name: "Sign out" }).click();
    await ada.page.getByRole("dialog").getByRole("button", { name: "Sign out" }).click();
    await ada.page.getByRole("heading", { name: "Sign in to Banyan" }).waitFor();
    await other.getByRole("heading", { name: "Sign in to Banyan" }).waitFor();
    await ada.page.reload();
    await ada.page.getByRole("heading", { name: "Sign in to Banyan" }).waitFor();
  });
});

/** A lively page for the README. */
async function scene(ada, bob, tag, path) {
  const { page } = ada;
  await page.getByRole("button", { name: "Close details" }).click();
  for (const [name, text] of [
    ["Release train", "Changelog is ready for a last look"],
    ["Announcements", "Welcome, everybody!"],
  ]) {
    await createRoom(page, name, { people: `bob-${tag}` });
    await say(page, text);
    await acked(page, text);
  }
  await bob.page.getByRole("link", { name: /Release train/ }).click();
  await say(bob.page, "Looks good. Tagging it after lunch 🌱");
  await acked(bob.page, "Tagging it after lunch");
  await createRoom(page, "Tree house", { people: `bob-${tag}` });
  await bob.page.getByRole("link", { name: /Tree house/ }).click();
  const talk = [
    [bob, "Morning! I killed the server in the middle of a sentence, twice."],
    [bob, "Both halves arrived, once each, in order."],
    [ada, "That is the whole point: nothing is said before it is on disk."],
    [ada, "How did the page take it?"],
    [bob, "A yellow line for a second, then everything as it was. It picked up at the last seq it knew."],
  ];
  for (const [who, text] of talk) {
    await say(who.page, text);
    await acked(who.page, text);
    await message((who === ada ? bob : ada).page, text).waitFor();
  }
  await message(page, "A yellow line").hover();
  await message(page, "A yellow line").getByRole("button", { name: /^Reply/ }).click();
  await page.keyboard.type("Then let us plant the next trunk 🌳");
  await page.keyboard.press("Enter");
  await acked(page, "plant the next trunk");
  await bob.page.bringToFront();
  await message(page, "plant the next trunk").getByRole("img", { name: "Seen" }).waitFor();
  await say(bob.page, "On it. @AdaLovelace, will you review? https://example.org/pulls/42");
  await message(page, "On it.").waitFor();
  await bob.page.getByRole("link", { name: /Release train/ }).click();
  await say(bob.page, "Done: v0.1.0 is out!");
  await acked(bob.page, "is out!");
  await page.bringToFront();
  const entry = page.getByRole("link", { name: /^Release train/ });
  await entry.locator(".badge", { hasText: /^2/ }).waitFor();
  await eventually("the last message in the list", async () => (await entry.innerText()).includes("is out!"));
  await page.mouse.move(1279, 1);
  await page.screenshot({ path });
}
