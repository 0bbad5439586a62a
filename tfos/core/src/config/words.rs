//! Settings that are one of a few words.

use std::str::FromStr;

/// An enum with a word for each variant: in `job.yaml`, on the command line, in messages, and as JSON.
macro_rules! words {
    ($(#[$outer:meta])* $visibility:vis enum $name:ident { $($(#[$inner:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        $visibility enum $name {
            $($(#[$inner])* #[serde(rename = $word)] $variant,)+
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $word,)+
                })
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    other => Err($crate::config::words::unknown(other, &[$($word),+])),
                }
            }
        }
    };
}

pub(super) use words;

/// Says which words there are.
pub(super) fn unknown(text: &str, words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match words.as_slice() {
        [first, second] => format!("`{text}` is neither {first} nor {second}"),
        [first @ .., last] => format!("`{text}` is none of {} and {last}", first.join(", ")),
        [] => format!("`{text}` is not known"),
    }
}

/// What was written, or the default after a word about what is wrong.
pub(super) fn read<T: FromStr<Err = String> + Default>(
    key: &str,
    text: Option<&String>,
    bad: &mut impl FnMut(&str, String),
) -> T {
    text.map_or(Ok(T::default()), |text| text.parse()).unwrap_or_else(|message| {
        bad(key, message);
        T::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_everywhere_and_all_of_them_where_it_is_none() {
        words! {
            /// Of a test.
            #[derive(Default)]
            enum Size {
                /// Not much.
                #[default]
                Small = "small",
                /// More.
                VeryLarge = "very-large",
            }
        }
        assert_eq!((Size::VeryLarge.to_string().as_str(), "very-large".parse()), ("very-large", Ok(Size::VeryLarge)));
        assert_eq!(serde_json::to_string(&Size::VeryLarge).unwrap(), r#""very-large""#);
        assert_eq!(serde_json::from_str::<Size>(r#""small""#).unwrap(), Size::Small);
        let mut told = vec![];
        let found: Size =
            read("size", Some(&"odd".to_owned()), &mut |key, message| told.push(format!("{key}: {message}")));
        assert_eq!((found, told), (Size::Small, vec!["size: `odd` is neither `small` nor `very-large`".to_owned()]));
        assert_eq!(unknown("x", &["a", "b", "c"]), "`x` is none of `a`, `b` and `c`");
    }
}
