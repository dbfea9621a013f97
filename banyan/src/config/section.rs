//! What a section of the configuration is, and the macro that makes one from its documented fields.
//!
//! Owns: the link between a struct's field and its key. Always holds: the doc comment of a field is the text that
//! `genconfig` prints and its default is the default of the key, since both are made from the one line that declares it.

use super::kind::{Given, Shown};

/// One key of a section.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    /// The doc comment, line by line.
    pub(crate) doc: &'static [&'static str],
    /// What may stand there: continues "must be …".
    pub(crate) allowed: String,
}

/// Why a section did not take a value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    UnknownKey,
    Value {
        allowed: String,
        /// The value must not be repeated.
        secret: bool,
    },
}

/// A section with its names known at run time.
pub(crate) trait Section {
    fn name(&self) -> &'static str;
    /// The doc comment, line by line.
    fn doc(&self) -> &'static [&'static str];
    /// All keys, in the order of the example file.
    fn keys(&self) -> Vec<Key>;
    /// Takes a value for a key, or leaves everything as it was.
    fn set(&mut self, key: &str, given: &Given<'_>) -> Result<(), Refused>;
    /// The value of a key of this section as one writes it; redacted if it is a secret.
    fn show(&self, key: &str) -> Option<Shown>;
}

/// Declares a section: doc comments, fields, defaults and kinds, each once.
macro_rules! section {
    (
        $(#[doc = $section_doc:literal])*
        $name:literal struct $type:ident {
            $( $(#[doc = $doc:literal])* $field:ident: $value:ty = $default:expr, $kind:expr; )*
        }
    ) => {
        $(#[doc = $section_doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub(crate) struct $type {
            $( $(#[doc = $doc])* pub(crate) $field: $value, )*
        }

        impl Default for $type {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $crate::config::section::Section for $type {
            fn name(&self) -> &'static str {
                $name
            }

            fn doc(&self) -> &'static [&'static str] {
                &[$($section_doc),*]
            }

            fn keys(&self) -> Vec<$crate::config::section::Key> {
                use $crate::config::kind::Kind;
                use $crate::config::section::Key;
                vec![$(
                    Key { name: stringify!($field), doc: &[$($doc),*], allowed: $kind.allowed() }
                ),*]
            }

            fn set(&mut self, key: &str, given: &$crate::config::kind::Given<'_>) -> Result<(), $crate::config::section::Refused> {
                use $crate::config::kind::Kind;
                use $crate::config::section::Refused;
                fn read<K: Kind>(kind: &K, given: &$crate::config::kind::Given<'_>) -> Result<K::Value, Refused> {
                    kind.read(given).ok_or_else(|| Refused::Value { allowed: kind.allowed(), secret: K::SECRET })
                }
                match key {
                    $( stringify!($field) => self.$field = read(&$kind, given)?, )*
                    _ => return Err(Refused::UnknownKey),
                }
                Ok(())
            }

            fn show(&self, key: &str) -> Option<$crate::config::kind::Shown> {
                use $crate::config::kind::{Kind, Shown};
                fn show<K: Kind>(kind: &K, value: &K::Value) -> Shown {
                    if K::SECRET && kind.is_set(value) {
                        Shown::Text("(redacted)".to_owned())
                    } else {
                        kind.show(value)
                    }
                }
                match key {
                    $( stringify!($field) => Some(show(&$kind, &self.$field)), )*
                    _ => None,
                }
            }
        }
    };
}
pub(crate) use section;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::kind::Kind;

    struct Password;

    impl Kind for Password {
        type Value = String;
        const SECRET: bool = true;

        fn read(&self, given: &Given<'_>) -> Option<String> {
            match given {
                Given::Raw(text) if text.len() > 4 => Some((*text).to_owned()),
                _ => None,
            }
        }

        fn show(&self, value: &String) -> Shown {
            Shown::Text(value.clone())
        }

        fn allowed(&self) -> String {
            "longer than 4".to_owned()
        }
    }

    section! {
        /// A section with a secret.
        "vault" struct Vault {
            /// Opens the vault.
            password: String = "sesame".to_owned(), Password;
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let mut vault = Vault::default();
        assert_eq!(vault.set("password", &Given::Raw("hunter22")), Ok(()));
        assert_eq!(vault.password, "hunter22");
        assert_eq!(vault.show("password"), Some(Shown::Text("(redacted)".to_owned())));
        let refused = Refused::Value { allowed: "longer than 4".to_owned(), secret: true };
        assert_eq!(vault.set("password", &Given::Raw("abc")), Err(refused));
        assert_eq!(vault.password, "hunter22", "a refused value changes nothing");
        assert_eq!(vault.keys()[0].name, "password");
        assert_eq!((vault.name(), vault.doc()), ("vault", &[" A section with a secret."][..]));
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert_eq!(Vault::default().set("pasword", &Given::Raw("hunter22")), Err(Refused::UnknownKey));
        assert_eq!(Vault::default().show("pasword"), None);
    }
}
