//! The environment's layer: `BANYAN_SECTION__KEY`.
//!
//! Always holds: a `BANYAN_…` variable is either taken or refused, so that a slip in its name cannot pass unnoticed.
//! The exception are the variables that Kubernetes sets for a service named `banyan…`: nobody wrote those.

use std::ffi::OsString;

use super::kind::Given;
use super::origin::Origin;
use super::problem::nearest;
use super::{Loader, plain};

const PREFIX: &str = "BANYAN_";

pub(super) fn read(loader: &mut Loader, environment: impl IntoIterator<Item = (OsString, OsString)>) {
    for (name, value) in environment {
        let name = name.to_string_lossy();
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        if is_service_link(rest, &value.to_string_lossy()) {
            continue;
        }
        let origin = Origin::Variable(plain(&name));
        let known = rest.split_once("__").and_then(|(section, key)| {
            let place = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
            let upper = rest.bytes().all(|byte| !byte.is_ascii_lowercase());
            let exists =
                loader.config.section_mut(&place.0).is_some_and(|section| section.show(&place.1).is_some());
            (upper && exists).then_some(place)
        });
        let Some((section, key)) = known else {
            let words = match guess(loader, &name) {
                Some(meant) => format!("is no setting; did you mean {meant}?"),
                None => "is no setting; they are named BANYAN_SECTION__KEY, as in BANYAN_SERVER__LISTEN"
                    .to_owned(),
            };
            loader.problem(origin, words);
            continue;
        };
        match value.to_str() {
            Some(text) => loader.set(origin, &section, &key, &Given::Raw(text)),
            None => loader.problem(origin, "is not UTF-8 text"),
        }
    }
}

/// The name of the variable that sets a key.
pub(super) fn variable(section: &str, key: &str) -> String {
    format!("{PREFIX}{}__{}", section.to_ascii_uppercase(), key.to_ascii_uppercase())
}

fn guess(loader: &Loader, name: &str) -> Option<String> {
    let sections = loader.config.sections();
    let all: Vec<String> = sections
        .iter()
        .flat_map(|section| section.keys().into_iter().map(|key| variable(section.name(), key.name)))
        .collect();
    // The prefix is common to all: only what differs may decide what is near.
    let tails = all.iter().filter_map(|known| known.strip_prefix(PREFIX));
    nearest(name.strip_prefix(PREFIX)?, tails).map(|tail| format!("{PREFIX}{tail}"))
}

/// Whether a variable (without the prefix) is one of those that Kubernetes makes from a service's name:
/// `…_SERVICE_HOST`, `…_SERVICE_PORT[_NAME]`, `…_PORT` with an address, `…_PORT_80_TCP[_ADDR|_PORT|_PROTO]`.
fn is_service_link(rest: &str, value: &str) -> bool {
    let rest = format!("_{rest}");
    let is_address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let of_port = rest.split("_PORT_").skip(1).any(|tail| tail.starts_with(|c: char| c.is_ascii_digit()));
    let of_service = rest.ends_with("_SERVICE_HOST") || rest.contains("_SERVICE_PORT");
    !rest.contains("__") && (of_service || of_port || (rest.ends_with("_PORT") && is_address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_links_are_told_from_settings() {
        for link in [
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_HTTP",
            "PORT",
            "PORT_8000_TCP",
            "PORT_8000_TCP_ADDR",
            "GATEWAY_SERVICE_HOST",
            "GATEWAY_PORT_80_TCP_PORT",
        ] {
            assert!(is_service_link(link, "tcp://10.0.0.11:8000"), "{link}");
        }
        for setting in
            ["SERVER__LISTEN", "SERVER_LISTEN", "LISTEN", "PORT", "SERVER_PORT", "SERVER__PORT", "PORT_NAME"]
        {
            assert!(!is_service_link(setting, "8000"), "{setting}");
        }
    }
}
