//! Start of the page: account, session and store wired to the browser, and the address followed.

import { Account } from "./account.ts";
import { type Host, Session, type SocketHandlers } from "./session.ts";
import { Store } from "./store.ts";
import { AppView } from "./view/app.ts";
import { signView } from "./view/sign.ts";

const SUBPROTOCOL = "banyan.v1.json";

const now = () => performance.now();

function freshId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID is not there on plain http
  return [...bytes].map((b) => b.toString(16).padStart(2, "0")).join("");
}

function connect(handlers: SocketHandlers): { send(text: string): void; close(code: number, reason: string): void } {
  const url = new URL("/v1/ws", location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(url, SUBPROTOCOL);
  socket.addEventListener("open", () => handlers.open());
  socket.addEventListener("message", (event) => handlers.message(event.data));
  socket.addEventListener("close", (event) => handlers.closed(event.code, event.reason));
  return {
    send: (text) => {
      if (socket.readyState === WebSocket.OPEN) socket.send(text);
    },
    close: (code, reason) => socket.close(code, reason),
  };
}

const account = new Account();
// the list of rooms is ordered by the wall clock, since that is what events carry
const store = new Store(Date.now, (ms, run) => void setTimeout(run, ms));
const host: Host = {
  now,
  random: Math.random,
  timer: (ms, run) => {
    const timer = setTimeout(run, ms);
    return () => clearTimeout(timer);
  },
  connect,
  token: () => account.current?.token ?? null,
  renewToken: () => account.renew(),
  freshId,
};
const session = new Session(host, (output) => {
  store.apply(output);
  if (output.kind === "link") {
    if (output.link.state === "signed_out") {
      const { reason } = output.link;
      const refused = account.current?.token;
      account.reload();
      if (account.current && account.current.token !== refused) {
        session.start(); // another tab has a newer token
        return;
      }
      account.forget();
      showSign(reason === "expired" ? "Your sign-in has expired. Please sign in again." : "You were signed out.");
    } else if (output.link.state === "online") {
      store.knockAgain();
    }
  }
});
store.session = session;

const app = new AppView(store, {
  freshId,
  now,
  signOut: async (everywhere) => {
    if (everywhere) {
      const token = account.current?.token;
      await account.endAll(); // if that fails nobody is signed out, and the dialog says why
      if (account.current?.token !== token) return; // the server's word was faster, and somebody may have signed in since
    }
    session.stop();
    store.clear();
    if (everywhere) account.forget();
    else await account.signOut();
    showSign("");
  },
});

function showSign(notice: string): void {
  document.querySelectorAll("dialog").forEach((dialog) => dialog.close());
  document.title = "Banyan";
  app.reset();
  const view = signView(account, notice, showApp);
  document.body.replaceChildren(view.element);
  view.focus();
}

function showApp(): void {
  const login = account.current;
  if (!login) return;
  if (store.me.user !== login.user) {
    // somebody else than before: nothing of theirs stays, neither on the screen nor unsent
    session.stop();
    store.clear();
  }
  store.me = { user: login.user, name: login.name };
  document.body.replaceChildren(app.element);
  app.focus();
  session.start();
  follow();
  store.touch("link", "me", "rooms", "room", "log");
}

function follow(): void {
  if (!account.current) return;
  const room = /^#\/room\/([A-Za-z0-9._:-]{1,128})$/.exec(location.hash)?.[1];
  store.go(room ?? null);
}

window.addEventListener("hashchange", follow);
window.addEventListener("online", () => session.hurry());
window.addEventListener("pageshow", (event) => {
  if (event.persisted) session.hurry();
});
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") session.hurry();
});
window.addEventListener("storage", (event) => {
  if (!account.concerns(event.key)) return;
  const before = account.current?.user;
  account.reload();
  const after = account.current?.user;
  if (after === before) return; // the same login with a newer token
  if (after === undefined) {
    session.stop();
    store.clear();
    showSign("You signed out in another tab.");
  } else {
    showApp();
  }
});
window.addEventListener("beforeunload", (event) => {
  if (session.outbox.unsettled > 0) event.preventDefault();
});

if (account.current) showApp();
else showSign("");
