// Bundles the two pages into dist/, which is checked in: the binary embeds it, and building the binary never runs Node.
// The same sources and the same lockfile give the same bytes; `--verify` compares instead of writing.
import { readFileSync, mkdirSync, readdirSync, rmSync, writeFileSync, existsSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const dist = join(here, "dist");

const options = {
  absWorkingDir: here,
  bundle: true,
  minify: true,
  charset: "utf8",
  legalComments: "none",
  target: ["chrome110", "firefox115", "safari16.4"],
  write: false,
  logLevel: "warning",
};
const [js, css, adminJs, adminCss] = await Promise.all([
  build({ ...options, entryPoints: ["src/main.ts"], format: "iife" }),
  build({ ...options, entryPoints: ["src/app.css"] }),
  build({ ...options, entryPoints: ["src/admin/main.ts"], format: "iife" }),
  build({ ...options, entryPoints: ["src/admin/admin.css"] }),
]);

const files = new Map([
  ["index.html", readFileSync(join(here, "src/index.html"))],
  ["assets/app.js", Buffer.from(js.outputFiles[0].contents)],
  ["assets/app.css", Buffer.from(css.outputFiles[0].contents)],
  ["assets/icon.svg", readFileSync(join(here, "src/icon.svg"))],
  ["admin/index.html", readFileSync(join(here, "src/admin/index.html"))],
  ["admin/admin.js", Buffer.from(adminJs.outputFiles[0].contents)],
  ["admin/admin.css", Buffer.from(adminCss.outputFiles[0].contents)],
]);

if (process.argv.includes("--verify")) {
  const there = existsSync(dist)
    ? readdirSync(dist, { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile())
        .map((entry) => relative(dist, join(entry.parentPath ?? entry.path, entry.name)).replaceAll("\\", "/"))
    : [];
  const wrong = [
    ...[...files].filter(([name, bytes]) => !there.includes(name) || !readFileSync(join(dist, name)).equals(bytes)).map(([name]) => name),
    ...there.filter((name) => !files.has(name)),
  ];
  if (wrong.length > 0) {
    console.error(`web/dist is not what web/src gives: ${wrong.join(", ")}. Run \`npm ci && npm run build\` in web/ and commit the result.`);
    process.exit(1);
  }
  console.log(`web/dist is what web/src gives (${files.size} files)`);
} else {
  rmSync(dist, { recursive: true, force: true });
  for (const [name, bytes] of files) {
    mkdirSync(dirname(join(dist, name)), { recursive: true });
    writeFileSync(join(dist, name), bytes);
    console.log(`dist/${name} ${bytes.length}`);
  }
}
