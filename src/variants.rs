//! Enums that know all of their variants.

/// Writes an enum and the list of its variants, so that none can be left out of it: `ALL`, in the order in which they are
/// written, and `index`, a variant's place in it. With a last variant behind a `;` that holds another such enum, `all()` and `COUNT` stand for the
/// list.
macro_rules! listed {
    ($(#[$about:meta])* $seen:vis enum $name:ident { $($(#[$doc:meta])* $variant:ident,)+ }) => {
        $(#[$about])*
        $seen enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// All of them.
            $seen const ALL: [Self; [$(stringify!($variant)),+].len()] = [$(Self::$variant),+];

            /// Its place in [`Self::ALL`].
            #[must_use]
            #[expect(clippy::as_conversions, reason = "variants without a value are numbered from 0")]
            $seen const fn index(self) -> usize {
                self as usize
            }
        }
    };
    ($(#[$about:meta])* $seen:vis enum $name:ident {
        $($(#[$doc:meta])* $variant:ident),+;
        $(#[$last_doc:meta])* $last:ident($inner:ty),
    }) => {
        $(#[$about])*
        $seen enum $name { $($(#[$doc])* $variant,)+ $(#[$last_doc])* $last($inner), }

        impl $name {
            const PLAIN: [Self; [$(stringify!($variant)),+].len()] = [$(Self::$variant),+];

            /// How many there are.
            $seen const COUNT: usize = Self::PLAIN.len() + <$inner>::ALL.len();

            /// All of them, in the order of their [`Self::index`].
            $seen fn all() -> impl Iterator<Item = Self> {
                Self::PLAIN.into_iter().chain(<$inner>::ALL.into_iter().map(Self::$last))
            }

            /// A number below [`Self::COUNT`], for tables.
            #[must_use]
            $seen const fn index(self) -> usize {
                enum Plain { $($variant,)+ }
                match self {
                    $(Self::$variant => Plain::$variant as usize,)+
                    Self::$last(inner) => Self::PLAIN.len() + inner.index(),
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    listed! {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Inner {
            A,
            B,
        }
    }

    listed! {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Outer {
            First,
            Second;
            Inner(Inner),
        }
    }

    #[test]
    fn a_list_has_every_variant_in_its_place() {
        assert_eq!(Inner::ALL, [Inner::A, Inner::B]);
        assert_eq!(Inner::ALL.map(Inner::index), [0, 1]);
        let all: Vec<_> = Outer::all().collect();
        assert_eq!(all, [Outer::First, Outer::Second, Outer::Inner(Inner::A), Outer::Inner(Inner::B)]);
        assert_eq!(all.iter().map(|one| one.index()).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(Outer::COUNT, 4);
    }
}
