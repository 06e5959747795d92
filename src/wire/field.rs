//! Fields of fixed headers: what lets a view be written as the table of its fields.
//!
//! An offset and a header's size are both known to the compiler, so "does the field fit" is a compile-time
//! assertion and a read is one load, without a check.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A value that is read from and written to a fixed place in a header, in network byte order.
pub trait Field: Sized {
    /// The field that starts at byte `AT`.
    fn get<const AT: usize, const N: usize>(header: &[u8; N]) -> Self;
    /// Writes the field that starts at byte `AT`.
    fn set<const AT: usize, const N: usize>(self, header: &mut [u8; N]);
}

/// The `LEN` bytes from byte `AT`.
#[inline(always)]
pub fn array<const AT: usize, const LEN: usize, const N: usize>(header: &[u8; N]) -> &[u8; LEN] {
    const { assert!(AT + LEN <= N, "field beyond its header") };
    // The assertion above proves the range, so the fallback is compiled away.
    header.get(AT..).and_then(<[u8]>::first_chunk).unwrap_or(&[0; LEN])
}

/// Writes the `LEN` bytes from byte `AT`.
#[inline(always)]
pub fn set_array<const AT: usize, const LEN: usize, const N: usize>(header: &mut [u8; N], value: [u8; LEN]) {
    const { assert!(AT + LEN <= N, "field beyond its header") };
    if let Some(place) = header.get_mut(AT..).and_then(<[u8]>::first_chunk_mut) {
        *place = value;
    }
}

impl<const LEN: usize> Field for [u8; LEN] {
    #[inline(always)]
    fn get<const AT: usize, const N: usize>(header: &[u8; N]) -> Self {
        *array::<AT, LEN, N>(header)
    }
    #[inline(always)]
    fn set<const AT: usize, const N: usize>(self, header: &mut [u8; N]) {
        set_array::<AT, LEN, N>(header, self);
    }
}

/// Implements [`Field`] for a type by the array it is made from and turned into.
macro_rules! field {
    ($type:ty, $bytes:ident => $read:expr, $value:ident => $write:expr) => {
        impl $crate::wire::field::Field for $type {
            #[inline(always)]
            fn get<const AT: usize, const N: usize>(header: &[u8; N]) -> Self {
                let $bytes = $crate::wire::field::Field::get::<AT, N>(header);
                $read
            }
            #[inline(always)]
            fn set<const AT: usize, const N: usize>(self, header: &mut [u8; N]) {
                let $value = self;
                $crate::wire::field::Field::set::<AT, N>($write, header);
            }
        }
    };
}

field!(u8, bytes => { let [byte]: [u8; 1] = bytes; byte }, value => [value]);
field!(u16, bytes => u16::from_be_bytes(bytes), value => value.to_be_bytes());
field!(u32, bytes => u32::from_be_bytes(bytes), value => value.to_be_bytes());
field!(u64, bytes => u64::from_be_bytes(bytes), value => value.to_be_bytes());
field!(Ipv4Addr, bytes => { let octets: [u8; 4] = bytes; Ipv4Addr::from(octets) }, value => value.octets());
field!(Ipv6Addr, bytes => { let octets: [u8; 16] = bytes; Ipv6Addr::from(octets) }, value => value.octets());

/// Declares the view of a fixed header: its name, its size in bytes, and a getter and setter for each field.
///
/// The view is generic over what holds the bytes: `&[u8; N]`, `&mut [u8; N]` or `[u8; N]`.
macro_rules! header {
    (
        $(#[$doc:meta])*
        $name:ident: $len:literal {
            $($(#[$field_doc:meta])* $get:ident, $set:ident: $type:ty = $at:literal;)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name<T>(T);

        impl<'a> $name<&'a [u8; $len]> {
            /// The header at the start of `bytes`, and the bytes after it; `None` when `bytes` is too short.
            #[inline]
            pub fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
                bytes.split_first_chunk().map(|(header, rest)| (Self(header), rest))
            }

            /// The header `offset` bytes into `bytes`; `None` when it does not fit.
            #[inline]
            pub fn at(bytes: &'a [u8], offset: usize) -> Option<Self> {
                bytes.get(offset..)?.first_chunk().map(Self)
            }
        }

        impl<'a> $name<&'a mut [u8; $len]> {
            /// The header at the start of `bytes`, and the bytes after it; `None` when `bytes` is too short.
            #[inline]
            pub fn split_mut(bytes: &'a mut [u8]) -> Option<(Self, &'a mut [u8])> {
                bytes.split_first_chunk_mut().map(|(header, rest)| (Self(header), rest))
            }

            /// The header `offset` bytes into `bytes`; `None` when it does not fit.
            #[inline]
            pub fn at_mut(bytes: &'a mut [u8], offset: usize) -> Option<Self> {
                bytes.get_mut(offset..)?.first_chunk_mut().map(Self)
            }
        }

        impl<T: ::std::borrow::Borrow<[u8; $len]>> $name<T> {
            /// The view over `bytes`. Any bytes are taken; whether they make sense is asked elsewhere.
            #[inline]
            pub const fn new(bytes: T) -> Self {
                Self(bytes)
            }

            /// The bytes of the header.
            #[inline]
            pub fn bytes(&self) -> &[u8; $len] {
                self.0.borrow()
            }

            $(
                $(#[$field_doc])*
                #[inline]
                pub fn $get(&self) -> $type {
                    <$type as $crate::wire::field::Field>::get::<$at, $len>(self.bytes())
                }
            )*
        }

        impl<T: ::std::borrow::BorrowMut<[u8; $len]>> $name<T> {
            /// The bytes of the header, to be written.
            #[inline]
            pub fn bytes_mut(&mut self) -> &mut [u8; $len] {
                self.0.borrow_mut()
            }

            $(
                #[doc = concat!("Sets what [`Self::", stringify!($get), "`] reads; no checksum is touched.")]
                #[inline]
                pub fn $set(&mut self, value: $type) {
                    <$type as $crate::wire::field::Field>::set::<$at, $len>(value, self.bytes_mut());
                }
            )*
        }
    };
}
