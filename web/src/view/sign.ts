//! The page before one is signed in.

import type { Account } from "../account.ts";
import { h } from "./dom.ts";

export interface SignView {
  element: HTMLElement;
  focus(): void;
}

export function signView(account: Account, notice: string, done: () => void): SignView {
  let mode: "in" | "up" = "in";

  const username = h("input", {
    id: "username",
    name: "username",
    autocomplete: "username",
    autocapitalize: "none",
    spellcheck: "false",
    required: true,
    maxlength: 64,
  });
  const display = h("input", { id: "display", name: "name", autocomplete: "name", maxlength: 64 });
  const displayField = h("div", { class: "field", hidden: true }, h("label", { for: "display" }, "Display name ", h("span", { class: "soft" }, "(optional)")), display);
  const password = h("input", { id: "password", name: "password", type: "password", autocomplete: "current-password", required: true, maxlength: 256 });
  const keep = h("input", { id: "keep", type: "checkbox", checked: true });
  const problem = h("p", { class: "problem", role: "alert", id: "sign-problem" });
  const submit = h("button", { class: "button primary wide", type: "submit" }, "Sign in");
  const title = h("h1", {}, "Sign in to Banyan");
  const other = h("button", { class: "link", type: "button", id: "other-mode" }, "Create an account");
  const question = h("span", {}, "New here? ");

  const setMode = (next: "in" | "up") => {
    mode = next;
    const up = mode === "up";
    displayField.hidden = !up;
    title.textContent = up ? "Create your account" : "Sign in to Banyan";
    submit.textContent = up ? "Create account" : "Sign in";
    question.textContent = up ? "Have an account? " : "New here? ";
    other.textContent = up ? "Sign in" : "Create an account";
    password.autocomplete = up ? "new-password" : "current-password";
    problem.textContent = "";
  };
  other.addEventListener("click", () => {
    setMode(mode === "in" ? "up" : "in");
    username.focus();
  });

  const form = h(
    "form",
    { class: "card", "aria-describedby": "sign-problem" },
    h("img", { src: "/assets/icon.svg", alt: "", width: 56, height: 56 }),
    title,
    notice ? h("p", { class: "notice", role: "status" }, notice) : null,
    h("div", { class: "field" }, h("label", { for: "username" }, "User name"), username),
    displayField,
    h("div", { class: "field" }, h("label", { for: "password" }, "Password"), password),
    h("label", { class: "tick", for: "keep" }, keep, "Keep me signed in on this device"),
    problem,
    submit,
    h("p", { class: "switch soft" }, question, other),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (submit.disabled) return;
    submit.disabled = true;
    problem.textContent = "";
    const name = username.value.trim();
    const enter =
      mode === "up"
        ? account.signUp(name, password.value, display.value.trim(), keep.checked)
        : account.signIn(name, password.value, keep.checked);
    enter.then(
      () => done(),
      (error: unknown) => {
        submit.disabled = false;
        problem.textContent = error instanceof Error ? error.message : String(error);
        password.focus();
        password.select();
      },
    );
  });

  return {
    element: h("main", { class: "sign" }, form),
    focus: () => username.focus(),
  };
}
