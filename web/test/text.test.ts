//! Links, mentions and labels.

import assert from "node:assert/strict";
import { test } from "node:test";
import { dayLabel, excerpt, hue, HUES, initials, mentioned, pieces } from "../src/text.ts";

test("only http, https and mailto become links, without the sentence around them", () => {
  const rows: [text: string, links: string[]][] = [
    ["see https://example.org/a?b=c#d.", ["https://example.org/a?b=c#d"]],
    ["(https://example.org/x_(y))", ["https://example.org/x_(y)"]],
    ["https://a.example, http://b.example!", ["https://a.example/", "http://b.example/"]],
    ["mailto:ada@example.org", ["mailto:ada@example.org"]],
    ["javascript:alert(1)", []],
    ["JaVaScRiPt:alert(1)//https:", []],
    ["data:text/html,<script>alert(1)</script>", []],
    ["vbscript:x file:///etc/passwd ftp://x.example", []],
    ["https://", []],
    ["<a href=\"https://x.example\">", ["https://x.example/"]],
    ["http://x.example\u0000evil", ["http://x.example/"]],
    ["no link", []],
  ];
  for (const [text, links] of rows) {
    const out = pieces(text);
    assert.deepEqual(out.flatMap((p) => p.link ?? []), links, text);
    assert.equal(out.map((p) => p.text).join(""), text, "no character is lost");
  }
});

test("mentions are members only, by name without spaces, once each", () => {
  const people = [{ user: "u1", name: "Ada" }, { user: "u2", name: "Bob Stone" }];
  assert.deepEqual(mentioned("@ada and @BobStone, @ada. mail a@ada @nobody", people), ["u1", "u2"]);
  assert.deepEqual(mentioned("nothing", people), []);
  const crowd = Array.from({ length: 60 }, (_, i) => ({ user: `u${i}`, name: `n${i}` }));
  assert.equal(mentioned(crowd.map((p) => `@${p.name}`).join(" "), crowd).length, 50);
});

test("labels", () => {
  assert.equal(initials("Ada Lovelace"), "AL");
  assert.equal(initials("bob"), "B");
  assert.equal(initials("  "), "?");
  assert.equal(initials("😀 face"), "😀F");
  assert.ok(hue("u1") < HUES && hue("u1") === hue("u1"));
  const now = new Date(2024, 4, 10, 12).getTime();
  assert.equal(dayLabel(now - 3_600_000, now), "Today");
  assert.equal(dayLabel(now - 86_400_000, now), "Yesterday");
  assert.match(dayLabel(now - 500 * 86_400_000, now), /202[23]/);
  assert.equal(excerpt(" a\n b  c "), "a b c");
  assert.equal([...excerpt("x".repeat(300))].length, 100);
});
