// Talks in a room with the `ws` package: node talk.mjs URL TOKEN ROOM COUNT UNTIL. The same as ../python/talk.py.
import { createRequire } from "node:module";
import { join } from "node:path";

const { WebSocket } = createRequire(join(process.env.BANYAN_TOOLS, "node-clients", "package.json"))("ws");
const [url, token, room] = process.argv.slice(2);
const [count, until] = process.argv.slice(5).map(Number);
const WINDOW = 8;
const PATIENCE_MS = 30_000;

const fail = (why) => {
  console.error(why);
  process.exit(1);
};
const socket = new WebSocket(url, ["banyan.v1.json"]);
let patience = setTimeout(() => fail("the server says nothing"), PATIENCE_MS);
let [since, last, sent, live, done] = [0, 0, 0, false, false];
const flying = new Map();
const say = (frame) => socket.send(JSON.stringify(frame));
const tell = (event) => console.log(JSON.stringify(event));

socket.on("error", (error) => fail(`error: ${error.message}`));
socket.on("close", (code) => (done ? process.exit(0) : fail(`closed early: ${code}`)));
socket.on("open", () => {
  if (socket.protocol !== "banyan.v1.json") fail(`subprotocol ${socket.protocol}`);
  say({ id: 1, auth: { token, client: "node" } });
});
socket.on("message", (data, isBinary) => {
  if (isBinary) fail("a binary frame on a JSON connection");
  clearTimeout(patience);
  patience = setTimeout(() => fail("the server says nothing"), PATIENCE_MS);
  const frame = JSON.parse(data);
  if (frame.id === 1) {
    if (!frame.auth) fail(JSON.stringify(frame));
    say({ id: 2, subscribe: { rooms: [{ room, after: 0 }] } });
  } else if (frame.id === 2) {
    const entry = frame.subscribe?.rooms?.[0];
    if (!entry || entry.error) fail(JSON.stringify(frame));
    [since, live] = [entry.head, true];
  } else if (frame.id !== undefined) {
    const name = flying.get(frame.id);
    flying.delete(frame.id);
    if (!frame.send || !name) fail(JSON.stringify(frame));
    last = frame.send.seq;
    tell({ seq: last, id: name, text: null, mine: true });
  } else if (frame.event) {
    const event = frame.event;
    last = event.seq;
    tell({ seq: last, id: event.client_msg_id ?? null, text: event.message?.text ?? null, mine: false });
  }
  while (live && sent < count && flying.size < WINDOW) {
    const name = `node-${sent}`;
    const id = 100 + sent++;
    flying.set(id, name);
    say({ id, send: { room, client_msg_id: name, since, text: `${name} says grüß Gott 🌳` } });
  }
  if (last >= until && flying.size === 0 && !done) {
    done = true;
    socket.close(1000);
  }
});
