// All browser tests against the binary that BANYAN_BIN names: `BANYAN_BIN=target/release/banyan npm run e2e`.
// Starts it on free loopback ports with a data directory of its own; for the last test kills it (-9) and starts it again.
// BANYAN_SCREENSHOT: where the picture of the page goes, if it is wanted. On a failure pictures of the pages and the
// server's log stay in the directory that is named.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createWriteStream, existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const READY_MS = 30_000;
const TEST_MS = 150_000;
const ADMIN_TOKEN = "a-ring-for-the-eyes-of-operators";

const bin = process.env.BANYAN_BIN && resolve(process.env.BANYAN_BIN);
if (!bin || !existsSync(bin)) {
  console.error(bin ? `BANYAN_BIN: there is no ${bin}` : "set BANYAN_BIN to the server binary, as in: BANYAN_BIN=../target/release/banyan npm run e2e");
  process.exit(64);
}

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

const dir = mkdtempSync(join(tmpdir(), "banyan-e2e-"));
const [port, opsPort] = [await freePort(), await freePort()];
const base = `http://127.0.0.1:${port}`;
const log = createWriteStream(join(dir, "server.log"));
let server = null;

async function start() {
  const args = ["serve", "--listen", `127.0.0.1:${port}`, "--ops-listen", `127.0.0.1:${opsPort}`, "--data-dir", join(dir, "data")];
  // The server takes every BANYAN_ variable for a setting of its own, and refuses those that are none.
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("BANYAN_")));
  env.BANYAN_SERVER__ADMIN_TOKEN = ADMIN_TOKEN;
  const child = spawn(bin, args, { stdio: ["ignore", "pipe", "pipe"], cwd: dir, env });
  child.stdout.pipe(log, { end: false });
  child.stderr.pipe(log, { end: false });
  server = child;
  const end = Date.now() + READY_MS;
  for (;;) {
    if (child.exitCode !== null) throw new Error(`the server ended with ${child.exitCode}`);
    const answer = await fetch(base, { signal: AbortSignal.timeout(1_000) }).catch(() => null);
    if (answer?.ok) {
      check(answer, await answer.text());
      return;
    }
    if (Date.now() > end) throw new Error(`the server did not answer at ${base} within ${READY_MS / 1000} s`);
    await new Promise((done) => setTimeout(done, 50));
  }
}

/** The page is the one that is checked in, and its policy is in force. */
function check(answer, page) {
  if (page !== readFileSync(join(here, "../dist/index.html"), "utf8")) throw new Error("the server answers with another page than web/dist");
  const policy = answer.headers.get("content-security-policy") ?? "";
  for (const part of ["default-src 'none'", "script-src 'self'", "style-src 'self'", "base-uri 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"]) {
    if (!policy.includes(part)) throw new Error(`the page's policy has no ${part}: ${policy}`);
  }
  if (answer.headers.get("x-content-type-options") !== "nosniff") throw new Error("the page is sent without nosniff");
}

async function stop(signal) {
  const child = server;
  if (!child || child.exitCode !== null || child.signalCode !== null) return;
  const gone = once(child, "exit");
  child.kill(signal);
  await gone;
}

/** Runs one script; `hooks` maps a line that it prints to what is done before it is answered. */
async function test(script, args, hooks = {}, at = base) {
  const child = spawn(process.execPath, [join(here, script), at, ...args], {
    stdio: ["pipe", "pipe", "inherit"],
    env: { ...process.env, FAILURE_DIR: dir, ADMIN_TOKEN },
  });
  const timer = setTimeout(() => child.kill("SIGKILL"), TEST_MS);
  let rest = "";
  let broken = null;
  child.stdin.on("error", () => undefined); // a script that failed does not listen any longer
  child.stdout.on("data", async (data) => {
    rest += data;
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      console.log(line);
      if (!hooks[line]) continue;
      try {
        await hooks[line]();
        child.stdin.write("\n");
      } catch (error) {
        broken = error;
        child.kill("SIGKILL");
      }
    }
  });
  const [code, signal] = await once(child, "close");
  clearTimeout(timer);
  if (broken) throw broken;
  if (code !== 0) throw new Error(`${script} ${signal ? `was ended after ${TEST_MS / 1000} s` : `failed with ${code}`}`);
}

let failure = null;
try {
  await start();
  await test("two-pages.mjs", process.env.BANYAN_SCREENSHOT ? [resolve(process.env.BANYAN_SCREENSHOT)] : []);
  await test("scroll.mjs", []);
  await test("admin.mjs", [], {}, `http://127.0.0.1:${opsPort}`);
  await test("restart.mjs", [], { "KILL-NOW": () => stop("SIGKILL"), "START-NOW": start });
} catch (error) {
  failure = error;
} finally {
  await stop("SIGTERM");
  log.end();
}
if (failure) {
  console.error(`browser tests failed: ${failure.message}\nlog and pictures: ${dir}`);
  process.exit(1);
}
rmSync(dir, { recursive: true, force: true });
console.log("browser tests: all passed");
