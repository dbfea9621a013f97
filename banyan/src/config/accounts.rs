//! `[accounts]`: who may come in, and what a password costs.

use std::path::PathBuf;
use std::time::Duration;

use super::kind::{AutoCount, Count, MIB, OptionalLocation, Size, Switch, Time};
use super::section::section;

section! {
    /// Accounts of our own. Tokens that an application makes with the node's keys work beside them.
    "accounts" struct Accounts {
        /// Whether anybody may make an account. Those that exist can log in either way.
        signup: bool = true, Switch;
        /// Directory of token-keys.json, with which tokens are made and checked. Empty: server.data_dir. The gateways of a
        /// cluster need the same keys: mount one directory, or copy the file.
        keys_dir: Option<PathBuf> = None, OptionalLocation;
        /// How long a token is good after signup, login or refresh. One day: a page left open overnight still works.
        token_lifetime: Duration = Duration::from_secs(24 * 3600), Time(Duration::from_secs(60), Duration::from_secs(365 * 86_400));
        /// Fewest characters of a new password. 8 is the floor of NIST SP 800-63B.
        min_password: u32 = 8, Count(8, 128);
        /// Memory of one argon2id hash. 19 MiB with 2 passes is OWASP's recommendation; changed values hold for new passwords.
        hashing_memory: u64 = 19 * MIB, Size(8 * MIB, 1024 * MIB);
        /// Passes of one argon2id hash over its memory.
        hashing_passes: u32 = 2, Count(1, 16);
        /// Passwords hashed at once. "auto" is half the cores, at least one: logins must not starve messages.
        hashing_concurrency: Option<u32> = None, AutoCount(1, 64);
        /// Signups and logins that may wait for a hash; the next is answered "overloaded" (112).
        /// 256 wait about 10 s on one core, after which people have given up.
        hashing_queue: u32 = 256, Count(1, 65_536);
    }
}
