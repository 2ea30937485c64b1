//! A text that is nearly always the end of a longer one, as a workload's name is of its uid: then it is kept with that.
//!
//! A plain value, on any thread. Invariant: where it begins there is a character of the whole.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

#[derive(Clone)]
pub struct Tail {
    whole: Arc<str>,
    begin: u32,
}

impl Tail {
    /// `text`, which shares the memory of `whole` if that ends with it.
    pub fn of(whole: &Arc<str>, text: &str) -> Self {
        let before = whole.strip_suffix(text).map(str::len);
        match before.map(u32::try_from) {
            Some(Ok(begin)) => Self {
                whole: whole.clone(),
                begin,
            },
            Some(Err(_)) | None => text.into(),
        }
    }
}

impl From<Arc<str>> for Tail {
    fn from(whole: Arc<str>) -> Self {
        Self { whole, begin: 0 }
    }
}

impl From<&str> for Tail {
    fn from(text: &str) -> Self {
        Arc::<str>::from(text).into()
    }
}

impl Deref for Tail {
    type Target = str;

    fn deref(&self) -> &str {
        &self.whole[self.begin as usize..]
    }
}

impl PartialEq for Tail {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Tail {}

impl fmt::Display for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &**self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_itself_whether_it_is_the_end_of_another_or_not() {
        let uid = Arc::<str>::from("cluster1//Pod/shop/cart-é");
        for (text, shares) in [
            ("cart-é", true),
            ("é", true),
            ("", true),
            (&*uid, true),
            ("cart", false),
            ("x/cluster1//Pod/shop/cart-é", false),
        ] {
            let owners = Arc::strong_count(&uid);
            let tail = Tail::of(&uid, text);
            assert_eq!(&*tail, text);
            assert_eq!(
                (format!("{tail}"), format!("{tail:?}")),
                (text.to_owned(), format!("{text:?}"))
            );
            assert_eq!(Arc::strong_count(&uid) - owners, usize::from(shares), "{text:?}");
            assert_eq!(tail, Tail::from(text));
            assert_ne!(tail, Tail::from("other"));
        }
    }
}
