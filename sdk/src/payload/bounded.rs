//! Decoding that ends, whatever the bytes are.
//!
//! A type that contains itself is as deep as its bytes say, and each level takes some of the stack;
//! a value without bytes (`()`) is there as often as a number says. JSON bounds the first by itself
//! and does not know the second. Bincode does neither, so its decoder goes through [`Bounded`]; what
//! its encoder is given is measured alike, in `measure`.

use std::{cell::Cell, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor},
};

/// Levels of lists, maps, tuples, structs, enums, options and newtypes inside one another.
pub(super) const DEPTH: u16 = 256;
/// Elements without bytes that all lists and maps of a value may have together.
pub(super) const EMPTY_ELEMENTS: usize = 1 << 20;

/// Why a value is refused that is nested deeper than `levels`.
pub(super) fn too_deep(levels: u16) -> String {
    format!("nested deeper than {levels} levels")
}

/// Why a value is refused that has too many elements without bytes.
pub(super) fn too_many() -> String {
    format!("more than {EMPTY_ELEMENTS} elements without bytes")
}

/// Decodes a `T` from so many bytes. Elements of lists and maps that have bytes cannot be more than
/// those, as each has one that belongs to no other.
pub(super) struct Seed<T> {
    elements: Cell<usize>,
    of: PhantomData<T>,
}

impl<T> Seed<T> {
    pub(super) fn new(bytes: usize) -> Self {
        Self { elements: Cell::new(bytes.saturating_add(EMPTY_ELEMENTS)), of: PhantomData }
    }
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Seed<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<T, D::Error> {
        let bounds = Bounds { levels: DEPTH, elements: &self.elements, counts: false };
        T::deserialize(Bounded { inner, bounds })
    }
}

/// What is left.
#[derive(Clone, Copy)]
struct Bounds<'b> {
    levels: u16,
    elements: &'b Cell<usize>,
    /// What is entered is a list or a map, not a tuple or a struct, which are sequences as well.
    counts: bool,
}

impl<'b> Bounds<'b> {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        let levels = self.levels.checked_sub(1);
        let levels = levels.ok_or_else(|| E::custom(too_deep(DEPTH)))?;
        Ok(Self { levels, counts: false, ..self })
    }

    fn into_list<E: Error>(self) -> Result<Self, E> {
        Ok(Self { counts: true, ..self.deeper()? })
    }

    fn element<E: Error>(self) -> Result<(), E> {
        if !self.counts {
            return Ok(());
        }
        let left = self.elements.get().checked_sub(1);
        let left = left.ok_or_else(|| E::custom(too_many()))?;
        self.elements.set(left);
        Ok(())
    }

    fn of<T>(self, inner: T) -> Bounded<'b, T> {
        Bounded { inner, bounds: self }
    }
}

/// A deserializer, or what one hands out, within bounds.
struct Bounded<'b, T> {
    inner: T,
    bounds: Bounds<'b>,
}

macro_rules! as_it_is {
    ($($method:ident),* $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method(visitor)
        })*
    };
}

macro_rules! deeper {
    ($enter:ident: $($method:ident($($name:ident: $type:ty),*)),* $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, $($name: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method($($name,)* self.bounds.$enter()?.of(visitor))
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Bounded<'_, D> {
    type Error = D::Error;

    as_it_is! {
        deserialize_any, deserialize_bool, deserialize_i8, deserialize_i16, deserialize_i32, deserialize_i64,
        deserialize_i128, deserialize_u8, deserialize_u16, deserialize_u32, deserialize_u64, deserialize_u128,
        deserialize_f32, deserialize_f64, deserialize_char, deserialize_str, deserialize_string,
        deserialize_bytes, deserialize_byte_buf, deserialize_unit, deserialize_identifier,
        deserialize_ignored_any,
    }

    deeper! { into_list: deserialize_seq(), deserialize_map() }

    deeper! { deeper:
        deserialize_option(),
        deserialize_newtype_struct(name: &'static str),
        deserialize_tuple(len: usize),
        deserialize_tuple_struct(name: &'static str, len: usize),
        deserialize_struct(name: &'static str, fields: &'static [&'static str]),
        deserialize_enum(name: &'static str, variants: &'static [&'static str]),
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_unit_struct(name, visitor)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Bounded<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(self.bounds.of(d))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(self.bounds.of(d))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.inner.visit_seq(self.bounds.of(access))
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(self.bounds.of(access))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.inner.visit_enum(self.bounds.of(access))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Bounded<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(self.bounds.of(d))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Bounded<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let element = self.inner.next_element_seed(self.bounds.of(seed))?;
        if element.is_some() {
            self.bounds.element()?;
        }
        Ok(element)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Bounded<'_, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let key = self.inner.next_key_seed(self.bounds.of(seed))?;
        if key.is_some() {
            self.bounds.element()?;
        }
        Ok(key)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.next_value_seed(self.bounds.of(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, 'b, A: EnumAccess<'de>> EnumAccess<'de> for Bounded<'b, A> {
    type Error = A::Error;
    type Variant = Bounded<'b, A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let (value, variant) = self.inner.variant_seed(self.bounds.of(seed))?;
        Ok((value, self.bounds.of(variant)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Bounded<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.newtype_variant_seed(self.bounds.of(seed))
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.inner.tuple_variant(len, self.bounds.of(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.inner.struct_variant(fields, self.bounds.of(visitor))
    }
}
