//! Whether what is encoded can be decoded again.
//!
//! A value that nobody can read would be recorded for ever, so the bounds of decoding hold on the
//! way out as well.

use std::{cell::Cell, fmt};

use serde::{
    Serialize, Serializer,
    ser::{
        Error, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
        SerializeTupleStruct, SerializeTupleVariant,
    },
};

use super::bounded::{DEPTH, EMPTY_ELEMENTS, too_deep, too_many};

/// Levels of arrays and objects inside one another that the decoder of JSON follows.
const JSON_DEPTH: u16 = 127;

/// Whether JSON can be decoded.
///
/// # Errors
/// Why it cannot.
pub(super) fn json(data: &[u8]) -> Result<(), String> {
    // Nearly all have not so many brackets in all.
    let brackets = data.iter().filter(|byte| matches!(byte, b'[' | b'{')).count();
    if brackets <= usize::from(JSON_DEPTH) {
        return Ok(());
    }
    let (mut levels, mut in_string, mut escaped) = (0_u16, false, false);
    for byte in data {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                levels += 1;
                if levels > JSON_DEPTH {
                    return Err(too_deep(JSON_DEPTH));
                }
            }
            b']' | b'}' if !in_string => levels -= 1,
            _ => {}
        }
    }
    Ok(())
}

/// Whether a value that takes so many bytes of bincode can be decoded.
///
/// # Errors
/// Why it cannot.
pub(super) fn bincode<T: Serialize + ?Sized>(value: &T, bytes: usize) -> Result<(), String> {
    let elements = Cell::new(bytes.saturating_add(EMPTY_ELEMENTS));
    value.serialize(Measure { levels: DEPTH, elements: &elements }).map_err(|error| error.0)
}

/// Counts as [`super::bounded`] does.
#[derive(Clone, Copy)]
struct Measure<'e> {
    levels: u16,
    elements: &'e Cell<usize>,
}

impl Measure<'_> {
    fn deeper(self) -> Result<Self, Refused> {
        let levels = self.levels.checked_sub(1).ok_or_else(|| Refused(too_deep(DEPTH)))?;
        Ok(Self { levels, ..self })
    }

    /// One more element of a list or a map.
    fn element(self) -> Result<(), Refused> {
        let left = self.elements.get().checked_sub(1).ok_or_else(|| Refused(too_many()))?;
        self.elements.set(left);
        Ok(())
    }
}

/// Why a value is refused.
#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl Error for Refused {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self(text.to_string())
    }
}

macro_rules! flat {
    ($($method:ident($($name:ident: $type:ty),*)),* $(,)?) => {
        $(fn $method(self, $($name: $type),*) -> Result<(), Refused> {
            $(let _ = $name;)*
            Ok(())
        })*
    };
}

macro_rules! compound {
    ($($method:ident($($name:ident: $type:ty),*)),* $(,)?) => {
        $(fn $method(self, $($name: $type),*) -> Result<Self, Refused> {
            $(let _ = $name;)*
            self.deeper()
        })*
    };
}

impl Serializer for Measure<'_> {
    type Ok = ();
    type Error = Refused;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    flat! {
        serialize_bool(v: bool), serialize_i8(v: i8), serialize_i16(v: i16), serialize_i32(v: i32),
        serialize_i64(v: i64), serialize_i128(v: i128), serialize_u8(v: u8), serialize_u16(v: u16),
        serialize_u32(v: u32), serialize_u64(v: u64), serialize_u128(v: u128), serialize_f32(v: f32),
        serialize_f64(v: f64), serialize_char(v: char), serialize_str(v: &str), serialize_bytes(v: &[u8]),
        serialize_unit(), serialize_unit_struct(name: &'static str),
    }

    // An absent value and a plain variant are levels at the reader's too.
    fn serialize_none(self) -> Result<(), Refused> {
        self.deeper().map(drop)
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
    ) -> Result<(), Refused> {
        self.deeper().map(drop)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Refused> {
        value.serialize(self.deeper()?)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        value.serialize(self.deeper()?)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        value.serialize(self.deeper()?)
    }

    compound! {
        serialize_seq(len: Option<usize>), serialize_tuple(len: usize), serialize_map(len: Option<usize>),
        serialize_tuple_struct(name: &'static str, len: usize), serialize_struct(name: &'static str, len: usize),
        serialize_tuple_variant(name: &'static str, index: u32, variant: &'static str, len: usize),
        serialize_struct_variant(name: &'static str, index: u32, variant: &'static str, len: usize),
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

impl SerializeSeq for Measure<'_> {
    type Ok = ();
    type Error = Refused;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        self.element()?;
        value.serialize(*self)
    }

    fn end(self) -> Result<(), Refused> {
        Ok(())
    }
}

impl SerializeMap for Measure<'_> {
    type Ok = ();
    type Error = Refused;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Refused> {
        self.element()?;
        key.serialize(*self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        value.serialize(*self)
    }

    fn end(self) -> Result<(), Refused> {
        Ok(())
    }
}

macro_rules! parts {
    ($($kind:ident: $method:ident($($name:ident: $type:ty),*)),* $(,)?) => {
        $(impl $kind for Measure<'_> {
            type Ok = ();
            type Error = Refused;

            fn $method<T: Serialize + ?Sized>(&mut self, $($name: $type,)* value: &T) -> Result<(), Refused> {
                $(let _ = $name;)*
                value.serialize(*self)
            }

            fn end(self) -> Result<(), Refused> {
                Ok(())
            }
        })*
    };
}

parts! {
    SerializeTuple: serialize_element(),
    SerializeTupleStruct: serialize_field(),
    SerializeTupleVariant: serialize_field(),
    SerializeStruct: serialize_field(key: &'static str),
    SerializeStructVariant: serialize_field(key: &'static str),
}
