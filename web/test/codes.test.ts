//! The page's tables of codes against the one table that the server is built from.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { afterClose, Close, Code, verdict } from "../src/protocol.ts";

interface Row {
  code: number;
  name: string;
  retry: boolean;
}

const table = JSON.parse(readFileSync(join(process.env["WEB_ROOT"] ?? ".", "../proto/codes.json"), "utf8")) as {
  errors: (Row & { verdict: string })[];
  close_codes: Row[];
};

test("every error code has the server's name", () => {
  assert.deepEqual(Object.fromEntries(Object.entries(Code)), Object.fromEntries(table.errors.map((row) => [row.name, row.code])));
});

test("what each refusal says about a send is what the server means by it", () => {
  const meant = { unknown: "unknown", not_this_try: "refused", too_old: "unknown", definite: "definite" };
  for (const row of table.errors) assert.equal(meant[verdict(row.code)], row.verdict, `${row.code} ${row.name}`);
});

test("after each close code the page comes back, or not, as the server says", () => {
  for (const { code, name, retry } of table.close_codes) {
    const after = afterClose(code);
    if (code === 1000) continue; // a polite goodbye that we did not ask for: come back
    assert.equal(after === "come_back" || after === "renew", retry, `${code} ${name}`);
  }
  const known = new Set(table.close_codes.map((row) => row.code));
  for (const [name, code] of Object.entries(Close)) assert.ok(known.has(code), `${code} ${name} is not the server's`);
});
