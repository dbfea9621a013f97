//! Signing up, in and out over HTTP, and where the token is kept.
//!
//! The token is kept in localStorage ("keep me signed in", so that a new tab or a restart of the browser needs no
//! password) or else in sessionStorage (gone with the tab). A cookie would be sent by forged requests as well; a token
//! in the page's own storage is not, and the page's strict policy keeps other scripts from reading it.

const KEY = "banyan.login";

export interface Login {
  user: string;
  name: string;
  token: string;
  expires_at: number;
}

/** The server said no, in words for a person. */
export class AccountError extends Error {
  readonly status: number;
  readonly code: number;
  constructor(status: number, code: number, message: string) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

function read(storage: Storage): Login | null {
  try {
    const value: unknown = JSON.parse(storage.getItem(KEY) ?? "null");
    if (typeof value !== "object" || value === null) return null;
    const { user, name, token, expires_at } = value as Partial<Login>;
    if (typeof user !== "string" || typeof token !== "string") return null;
    return { user, name: name ?? "", token, expires_at: expires_at ?? 0 };
  } catch {
    return null; // storage switched off, or not ours
  }
}

export class Account {
  private login: Login | null = null;
  private keep = true;

  constructor() {
    this.reload();
  }

  get current(): Login | null {
    return this.login;
  }

  /** Reads what another tab may have changed. */
  reload(): void {
    try {
      const here = read(sessionStorage);
      this.login = here ?? read(localStorage);
      this.keep = here === null;
    } catch {
      // storage refused altogether: the login lives as long as the page
    }
  }

  /** True if a change of that storage key concerns the login. */
  concerns(key: string | null): boolean {
    return key === null || key === KEY;
  }

  private save(login: Login | null): void {
    this.login = login;
    try {
      sessionStorage.removeItem(KEY);
      // a login that ends here was kept there; somebody else's, of another tab, is not ours to end
      if (login === null) this.keep && localStorage.removeItem(KEY);
      else (this.keep ? localStorage : sessionStorage).setItem(KEY, JSON.stringify(login));
    } catch {
      // as above
    }
  }

  async signUp(username: string, password: string, displayName: string, keep: boolean): Promise<Login> {
    const body = { username, password, ...(displayName ? { display_name: displayName } : {}) };
    return this.enter("/v1/signup", body, keep);
  }

  async signIn(username: string, password: string, keep: boolean): Promise<Login> {
    return this.enter("/v1/login", { username, password }, keep);
  }

  private async enter(path: string, body: object, keep: boolean): Promise<Login> {
    const login = (await post(path, body)) as Login;
    this.keep = keep;
    this.save(login);
    return login;
  }

  /** Ends all logins of this person; fails if the server does not say that it has. */
  async endAll(): Promise<void> {
    const token = this.login?.token;
    if (token === undefined) return;
    await post("/v1/logout", { all: true }, token).catch((error: unknown) => {
      if (!(error instanceof AccountError && error.status === 401)) throw error; // ended already
    });
  }

  /** Ends the login on the server if it can be reached, and here in any case. */
  async signOut(): Promise<void> {
    const token = this.login?.token;
    this.save(null);
    if (token !== undefined) await post("/v1/logout", {}, token).catch(() => undefined);
  }

  forget(): void {
    this.save(null);
  }

  async renew(): Promise<"renewed" | "refused" | "unreachable"> {
    const used = this.login?.token;
    this.reload();
    const token = this.login?.token;
    if (token === undefined) return "refused";
    if (used !== undefined && used !== token) return "renewed"; // another tab was faster
    try {
      const login = (await post("/v1/token", undefined, token)) as Login;
      this.reload();
      // somebody has signed out meanwhile, or in, here or in another tab: theirs stands
      if (this.login?.token !== token) return this.login === null ? "refused" : "renewed";
      this.save(login);
      return "renewed";
    } catch (error) {
      return error instanceof AccountError && error.status === 401 ? "refused" : "unreachable";
    }
  }
}

const REQUEST_TIMEOUT_MS = 20_000;

async function post(path: string, body?: object, token?: string): Promise<unknown> {
  const headers: Record<string, string> = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (token !== undefined) headers["Authorization"] = `Bearer ${token}`;
  let response: Response;
  try {
    response = await fetch(path, {
      method: "POST",
      headers,
      credentials: "omit",
      cache: "no-store",
      signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS),
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
  } catch {
    throw new AccountError(0, 0, "The server cannot be reached. Check the connection and try again.");
  }
  if (response.status === 204) return null;
  const said = (await response.json().catch(() => null)) as Record<string, unknown> | null;
  if (!response.ok) {
    const text = [said?.["detail"], said?.["title"], said?.["name"]].find((t): t is string => typeof t === "string" && t !== "");
    throw new AccountError(response.status, Number(said?.["code"] ?? 0), sentence(text ?? `The server answered ${response.status}.`));
  }
  return said;
}

/** Server messages are lower case without a full stop; people get sentences. */
export function sentence(text: string): string {
  const words = text.replace(/_/g, " ").trim();
  const first = words.charAt(0).toUpperCase() + words.slice(1);
  return /[.!?]$/.test(first) ? first : `${first}.`;
}
