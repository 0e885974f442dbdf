//! How user values become bytes and back.
//!
//! A value is encoded with the worker's (or client's) [`Codec`], or with bincode when its type is
//! [`Bin`]. It is decoded by the content type that was recorded with it, never by configuration,
//! so a worker may change its codec while runs are open.

mod bounded;
mod measure;

use std::fmt;

use bincode::error::DecodeError;
use bytes::Bytes;
use onward_proto::v1;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, de::DeserializeOwned, ser};
use twox_hash::XxHash3_64;

/// The content type of JSON payloads.
pub const JSON: &str = "json";
/// The content type of bincode payloads.
pub const BINCODE: &str = "binary/bincode2";

/// How much memory one bincode payload may claim: a hostile length prefix must not exhaust it.
const BINCODE_LIMIT: usize = 64 << 20;

/// The format of new payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Codec {
    /// Readable in every tool, and tolerant of added and removed fields.
    #[default]
    Json,
    /// Compact and fast. Fields are told apart by position alone, so types cannot change.
    Bincode,
}

/// A value that could not be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// The value's `Serialize` refused.
    #[error("cannot encode {type_name}: {reason}")]
    Encode {
        /// The Rust type.
        type_name: &'static str,
        /// What the encoder says.
        reason: String,
    },
    /// The bytes are no such value.
    #[error("cannot decode {type_name} from {content_type}: {reason}")]
    Decode {
        /// The Rust type.
        type_name: &'static str,
        /// How the bytes are encoded.
        content_type: String,
        /// What the decoder says.
        reason: String,
    },
    /// Nobody here can read this encoding.
    #[error("unknown content type {0:?}")]
    ContentType(String),
    /// An argument that is not optional was not given.
    #[error("argument {position} of type {type_name} is missing")]
    Missing {
        /// Its position, from 1.
        position: usize,
        /// The Rust type.
        type_name: &'static str,
    },
    /// There are more arguments than parameters.
    #[error("{given} arguments for {expected} parameters")]
    Extra {
        /// How many parameters there are.
        expected: usize,
        /// How many arguments came.
        given: usize,
    },
}

/// A value that is always encoded with bincode, whatever the worker's codec.
///
/// ```
/// use onward::payload::{self, Bin, Codec};
///
/// let payload = payload::encode(&Bin(vec![1_u8, 2, 3]), Codec::Json)?;
/// assert_eq!(payload.content_type, "binary/bincode2");
/// assert_eq!(payload::decode::<Bin<Vec<u8>>>(&payload)?.0, [1, 2, 3]);
/// # Ok::<_, payload::PayloadError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bin<T>(pub T);

/// The name by which an encoder recognises [`Bin`]; no Rust type can have it.
const BIN_NAME: &str = "$onward::Bin";

impl<T: Serialize> Serialize for Bin<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(BIN_NAME, &self.0)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Bin<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
            type Value = Bin<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<Bin<T>, D::Error> {
                T::deserialize(d).map(Bin)
            }
        }
        deserializer.deserialize_newtype_struct(BIN_NAME, Visitor(std::marker::PhantomData))
    }
}

/// Encodes a value.
///
/// # Errors
/// If its `Serialize` refuses, JSON cannot express it (a map whose keys are no strings), or it is
/// beyond the bounds of [`decode`].
pub fn encode<T: Serialize + ?Sized>(value: &T, codec: Codec) -> Result<v1::Payload, PayloadError> {
    encode_as(value, shape_of(value), codec)
}

fn encode_as<T: Serialize + ?Sized>(
    value: &T,
    shape: Shape,
    codec: Codec,
) -> Result<v1::Payload, PayloadError> {
    let refused =
        |reason: String| PayloadError::Encode { type_name: std::any::type_name::<T>(), reason };
    let (content_type, data) = match (shape, codec) {
        (Shape::Bin, _) | (_, Codec::Bincode) => {
            let config = bincode::config::standard().with_limit::<BINCODE_LIMIT>();
            let data = bincode::serde::encode_to_vec(value, config)
                .map_err(|error| refused(error.to_string()))?;
            measure::bincode(value, data.len()).map_err(refused)?;
            (BINCODE, data)
        }
        (_, Codec::Json) => {
            let data = serde_json::to_vec(value).map_err(|error| refused(error.to_string()))?;
            measure::json(&data).map_err(refused)?;
            (JSON, data)
        }
    };
    Ok(v1::Payload {
        content_type: content_type.to_owned(),
        data: Bytes::from(data),
        ..Default::default()
    })
}

/// Decodes a value by the content type that was recorded with it.
///
/// Levels inside one another are bounded (JSON 127; bincode 256, options and newtypes counted), and so
/// are elements that take no bytes in bincode (1,048,576).
///
/// # Errors
/// If the bytes are no such value, are beyond these bounds, or their encoding is unknown.
pub fn decode<T: DeserializeOwned>(payload: &v1::Payload) -> Result<T, PayloadError> {
    let refused = |reason: String| PayloadError::Decode {
        type_name: std::any::type_name::<T>(),
        content_type: payload.content_type.clone(),
        reason,
    };
    match payload.content_type.as_str() {
        JSON => serde_json::from_slice(&payload.data).map_err(|error| refused(error.to_string())),
        BINCODE => {
            let config = bincode::config::standard().with_limit::<BINCODE_LIMIT>();
            let seed = bounded::Seed::<T>::new(payload.data.len());
            let (value, read) = bincode::serde::seed_decode_from_slice(seed, &payload.data, config)
                .map_err(|error| refused(text_of(error)))?;
            if read == payload.data.len() {
                Ok(value)
            } else {
                Err(refused(format!("{} bytes are left over", payload.data.len() - read)))
            }
        }
        other => Err(PayloadError::ContentType(other.to_owned())),
    }
}

/// What serde or the type says stands alone; the rest is told as the decoder names it.
fn text_of(error: DecodeError) -> String {
    match error {
        DecodeError::OtherString(text) => text,
        DecodeError::Other(text) => text.to_owned(),
        named => named.to_string(),
    }
}

/// Encoded arguments, and the hash by which a replay can tell that they changed.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedArgs {
    /// One entry for each parameter.
    pub payloads: Vec<v1::Payload>,
    /// Over content types and bytes. Trailing absent values are left out, so that a new optional
    /// parameter does not change it.
    pub hash: u64,
}

/// The parameters of an activity or workflow: a tuple, encoded as a list of payloads.
pub trait Args: Sized + 'static {
    /// How many parameters there are.
    const COUNT: usize;

    /// Encodes each.
    ///
    /// # Errors
    /// If one of them cannot be encoded.
    fn encode(&self, codec: Codec) -> Result<EncodedArgs, PayloadError>;

    /// Decodes each. A missing trailing argument is absent: `None`, whatever the codec.
    ///
    /// # Errors
    /// If one does not decode, a missing one is not optional, or there are too many.
    fn decode(payloads: &[v1::Payload]) -> Result<Self, PayloadError>;
}

/// Collects encoded arguments. Not public: tuples are the only [`Args`].
struct ArgsEncoder {
    codec: Codec,
    payloads: Vec<v1::Payload>,
    /// How many payloads the hash covers: up to the last that is not absent.
    hashed: usize,
}

impl ArgsEncoder {
    fn push<T: Serialize>(&mut self, value: &T) -> Result<(), PayloadError> {
        let shape = shape_of(value);
        self.payloads.push(encode_as(value, shape, self.codec)?);
        if !matches!(shape, Shape::Absent) {
            self.hashed = self.payloads.len();
        }
        Ok(())
    }

    fn finish(self) -> EncodedArgs {
        let mut bytes = Vec::new();
        for payload in &self.payloads[..self.hashed] {
            bytes.extend_from_slice(payload.content_type.as_bytes());
            bytes.push(0);
            bytes.extend_from_slice(&(payload.data.len() as u64).to_le_bytes());
            bytes.extend_from_slice(&payload.data);
        }
        EncodedArgs { hash: XxHash3_64::oneshot(&bytes), payloads: self.payloads }
    }
}

fn decode_at<T: DeserializeOwned>(
    payloads: &[v1::Payload],
    index: usize,
) -> Result<T, PayloadError> {
    match payloads.get(index) {
        Some(payload) => decode(payload),
        None => T::deserialize(AbsentValue).map_err(|_| PayloadError::Missing {
            position: index + 1,
            type_name: std::any::type_name::<T>(),
        }),
    }
}

macro_rules! args {
    ($($name:ident $index:tt),*) => {
        impl<$($name: Serialize + DeserializeOwned + 'static),*> Args for ($($name,)*) {
            const COUNT: usize = <[usize]>::len(&[$($index),*]);

            #[allow(unused_mut)]
            fn encode(&self, codec: Codec) -> Result<EncodedArgs, PayloadError> {
                let mut encoder = ArgsEncoder { codec, payloads: Vec::with_capacity(Self::COUNT), hashed: 0 };
                $(encoder.push(&self.$index)?;)*
                Ok(encoder.finish())
            }

            fn decode(payloads: &[v1::Payload]) -> Result<Self, PayloadError> {
                if payloads.len() > Self::COUNT {
                    return Err(PayloadError::Extra { expected: Self::COUNT, given: payloads.len() });
                }
                Ok(($(decode_at::<$name>(payloads, $index)?,)*))
            }
        }
    };
}
args!();
args!(A 0);
args!(A 0, B 1);
args!(A 0, B 1, C 2);
args!(A 0, B 1, C 2, D 3);
args!(A 0, B 1, C 2, D 3, E 4);
args!(A 0, B 1, C 2, D 3, E 4, F 5);
args!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
args!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);
args!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8);
args!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9);
args!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10);
args!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11);

/// Deserializes an argument that was not given.
struct AbsentValue;

impl<'de> Deserializer<'de> for AbsentValue {
    type Error = de::value::Error;

    fn deserialize_any<V: de::Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("missing"))
    }

    fn deserialize_option<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_none()
    }

    /// Nothing is all that there is to `()`.
    fn deserialize_unit<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: de::Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// What a value looks like from outside.
#[derive(Debug, Clone, Copy)]
enum Shape {
    Bin,
    Absent,
    Other,
}

/// Asks a value for its outermost shape. It stops there: nothing inside is visited, unless the
/// value is a [`Bin`].
fn shape_of<T: Serialize + ?Sized>(value: &T) -> Shape {
    match value.serialize(ShapeProbe) {
        Ok(shape) => shape,
        Err(Unshaped) => Shape::Other,
    }
}

struct ShapeProbe;

/// The probe knows enough.
#[derive(Debug)]
struct Unshaped;

impl fmt::Display for Unshaped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not asked for")
    }
}

impl std::error::Error for Unshaped {}

impl ser::Error for Unshaped {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

type Never = ser::Impossible<Shape, Unshaped>;

macro_rules! other {
    ($($method:ident($type:ty)),* $(,)?) => {
        $(fn $method(self, _: $type) -> Result<Shape, Unshaped> { Ok(Shape::Other) })*
    };
}

impl Serializer for ShapeProbe {
    type Ok = Shape;
    type Error = Unshaped;
    type SerializeSeq = Never;
    type SerializeTuple = Never;
    type SerializeTupleStruct = Never;
    type SerializeTupleVariant = Never;
    type SerializeMap = Never;
    type SerializeStruct = Never;
    type SerializeStructVariant = Never;

    other! {
        serialize_bool(bool), serialize_i8(i8), serialize_i16(i16), serialize_i32(i32), serialize_i64(i64),
        serialize_i128(i128), serialize_u8(u8), serialize_u16(u16), serialize_u32(u32), serialize_u64(u64),
        serialize_u128(u128), serialize_f32(f32), serialize_f64(f64), serialize_char(char), serialize_str(&str),
        serialize_bytes(&[u8]), serialize_unit_struct(&'static str),
    }

    fn serialize_none(self) -> Result<Shape, Unshaped> {
        Ok(Shape::Absent)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result<Shape, Unshaped> {
        Ok(Shape::Other)
    }

    fn serialize_unit(self) -> Result<Shape, Unshaped> {
        Ok(Shape::Other)
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
    ) -> Result<Shape, Unshaped> {
        Ok(Shape::Other)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        _: &T,
    ) -> Result<Shape, Unshaped> {
        Ok(if name == BIN_NAME { Shape::Bin } else { Shape::Other })
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<Shape, Unshaped> {
        Ok(Shape::Other)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Never, Unshaped> {
        Err(Unshaped)
    }

    fn serialize_tuple(self, _: usize) -> Result<Never, Unshaped> {
        Err(Unshaped)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Never, Unshaped> {
        Err(Unshaped)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Never, Unshaped> {
        Err(Unshaped)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Never, Unshaped> {
        Err(Unshaped)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Never, Unshaped> {
        Err(Unshaped)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Never, Unshaped> {
        Err(Unshaped)
    }

    fn collect_str<T: fmt::Display + ?Sized>(self, _: &T) -> Result<Shape, Unshaped> {
        Ok(Shape::Other)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Order {
        id: String,
        total: u64,
        note: Option<String>,
        kind: Kind,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Kind {
        Plain,
        Gift { from: String },
    }

    fn order() -> Order {
        Order { id: "o1".into(), total: 1_000, note: None, kind: Kind::Gift { from: "Ada".into() } }
    }

    /// Golden: stored runs are decoded from these for ever.
    #[test]
    fn encodings_never_change() {
        let json = encode(&order(), Codec::Json).unwrap();
        assert_eq!(json.content_type, "json");
        assert_eq!(
            json.data,
            &br#"{"id":"o1","total":1000,"note":null,"kind":{"Gift":{"from":"Ada"}}}"#[..]
        );

        let bincode = encode(&order(), Codec::Bincode).unwrap();
        assert_eq!(bincode.content_type, "binary/bincode2");
        assert_eq!(bincode.data, &[2, b'o', b'1', 251, 0xe8, 0x03, 0, 1, 3, b'A', b'd', b'a'][..]);
        assert_eq!(encode(&Kind::Plain, Codec::Bincode).unwrap().data, &[0][..]);
        assert_eq!(encode(&Bin(-1_i64), Codec::Json).unwrap().data, &[1][..]);

        for payload in [json, bincode] {
            assert_eq!(decode::<Order>(&payload).unwrap(), order());
        }
    }

    #[test]
    fn arguments_hash_is_fixed() {
        let hash = |encoded: EncodedArgs| encoded.hash;
        assert_eq!(hash(().encode(Codec::Json).unwrap()), 0x2d06_8005_38d3_94c2);
        let one = hash(("o1".to_owned(),).encode(Codec::Json).unwrap());
        let with_absent = hash(("o1".to_owned(), None::<u8>).encode(Codec::Json).unwrap());
        let with_null_before = hash((None::<u8>, "o1".to_owned()).encode(Codec::Json).unwrap());
        assert_eq!(one, with_absent);
        assert_ne!(one, with_null_before);
    }

    #[test]
    fn decoding_goes_by_the_recorded_content_type() {
        let written_by_json_worker = encode(&7_u32, Codec::Json).unwrap();
        assert_eq!(decode::<Bin<u32>>(&written_by_json_worker).unwrap(), Bin(7));
        let foreign = v1::Payload { content_type: "avro".into(), ..Default::default() };
        assert_eq!(decode::<u32>(&foreign), Err(PayloadError::ContentType("avro".into())));
    }

    #[test]
    fn left_over_bytes_are_refused() {
        let mut payload = encode(&7_u32, Codec::Bincode).unwrap();
        payload.data = Bytes::from_static(&[7, 0]);
        assert!(matches!(decode::<u32>(&payload), Err(PayloadError::Decode { .. })));
    }

    #[test]
    fn a_hostile_length_is_refused() {
        let payload = v1::Payload {
            content_type: BINCODE.into(),
            data: Bytes::from_static(&[253, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            ..Default::default()
        };
        assert!(decode::<Vec<u64>>(&payload).is_err());
        assert!(decode::<String>(&payload).is_err());
    }

    /// As deep as its bytes say.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Deep {
        End,
        Option(Option<Box<Deep>>),
        List(Vec<Deep>),
        Map(std::collections::BTreeMap<u8, Deep>),
        Struct { inner: Box<Deep> },
        Tuple(u8, Box<Deep>),
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Link(Option<Box<Link>>);

    fn in_bincode(data: Vec<u8>) -> v1::Payload {
        v1::Payload { content_type: BINCODE.into(), data: data.into(), ..Default::default() }
    }

    /// On a stack as small as that of a task of tokio.
    fn decode_deep<T: DeserializeOwned>(data: Vec<u8>) -> Option<String> {
        let decodes = move || decode::<T>(&in_bincode(data)).err().map(|error| error.to_string());
        let thread = std::thread::Builder::new().stack_size(2 << 20);
        thread.spawn(decodes).unwrap().join().unwrap()
    }

    #[test]
    fn a_value_that_is_nested_without_end_is_refused() {
        for level in [&[1_u8, 1][..], &[2, 1], &[3, 1, 0], &[4], &[5, 0]] {
            let error = decode_deep::<Deep>(level.repeat(1 << 20)).unwrap();
            assert!(error.ends_with(": nested deeper than 256 levels"), "{error}");
        }
        let error = decode_deep::<Link>(vec![1; 1 << 20]).unwrap();
        assert!(error.ends_with(": nested deeper than 256 levels"), "{error}");
    }

    #[test]
    fn a_value_that_is_nested_as_deep_as_that_decodes() {
        // A struct and an option for each link.
        let links = |n: usize| [vec![1; n], vec![0]].concat();
        assert_eq!(decode_deep::<Link>(links(127)), None);
        assert!(decode_deep::<Link>(links(128)).is_some());
        let mut deep = Deep::End;
        for _ in 0..40 {
            deep =
                Deep::Struct { inner: Box::new(Deep::List(vec![Deep::Tuple(1, Box::new(deep))])) };
        }
        let payload = encode(&deep, Codec::Bincode).unwrap();
        assert_eq!(decode::<Deep>(&payload).unwrap(), deep);
    }

    /// Whoever writes a value finds out, not whoever reads it.
    #[test]
    fn what_cannot_be_decoded_is_not_encoded() {
        fn links(n: usize) -> Link {
            (0..n).fold(Link(None), |link, _| Link(Some(Box::new(link))))
        }
        fn nested(n: usize) -> Deep {
            (0..n).fold(Deep::End, |deep, at| match at % 5 {
                0 => Deep::Option(Some(Box::new(deep))),
                1 => Deep::List(vec![deep]),
                2 => Deep::Map([(1, deep)].into()),
                3 => Deep::Struct { inner: Box::new(deep) },
                _ => Deep::Tuple(1, Box::new(deep)),
            })
        }
        fn deepest<T: Serialize + DeserializeOwned>(codec: Codec, value: fn(usize) -> T) -> usize {
            let encodes = |n: &usize| encode(&value(*n), codec).is_ok();
            let most = (1..300).take_while(encodes).last().unwrap();
            decode::<T>(&encode(&value(most), codec).unwrap()).unwrap();
            // What decoding refuses is just one more.
            let config = bincode::config::standard();
            let beyond = match codec {
                Codec::Json => v1::Payload {
                    content_type: JSON.into(),
                    data: serde_json::to_vec(&value(most + 1)).unwrap().into(),
                    ..Default::default()
                },
                Codec::Bincode => {
                    in_bincode(bincode::serde::encode_to_vec(value(most + 1), config).unwrap())
                }
            };
            assert!(decode::<T>(&beyond).is_err());
            most
        }
        assert_eq!(deepest(Codec::Bincode, links), 127);
        assert!(deepest(Codec::Bincode, nested) > 40);
        assert!(deepest(Codec::Json, nested) > 40);
        let error = encode(&links(128), Codec::Bincode).unwrap_err().to_string();
        assert!(error.ends_with(": nested deeper than 256 levels"), "{error}");
        let error = encode(&nested(200), Codec::Json).unwrap_err().to_string();
        assert!(error.ends_with(": nested deeper than 127 levels"), "{error}");
        // Brackets in texts are no levels.
        assert!(encode(&r#"[[\"[{"#.repeat(200), Codec::Json).is_ok());
        assert!(encode(&r"[\".repeat(200), Codec::Json).is_ok());
        // Nor are those that stand beside one another.
        for codec in [Codec::Json, Codec::Bincode] {
            encode(&vec![vec![Link(None)]; 300], codec).unwrap();
        }
    }

    /// Tuples and structs are sequences as well, and their parts take no bytes of their own.
    #[test]
    fn lists_of_small_structs_are_as_long_as_a_payload_may_be() {
        type Inner = ((bool,), ());
        let list: Vec<Inner> = vec![((true,), ()); 2 << 20];
        let payload = encode(&list, Codec::Bincode).unwrap();
        assert_eq!(decode::<Vec<Inner>>(&payload).unwrap(), list);
        let lists: Vec<(Vec<()>, Vec<()>)> = vec![(Vec::new(), Vec::new()); 1 << 20];
        let payload = encode(&lists, Codec::Bincode).unwrap();
        assert_eq!(decode::<Vec<(Vec<()>, Vec<()>)>>(&payload).unwrap(), lists);
    }

    #[test]
    fn elements_without_bytes_are_bounded() {
        let many = |n: usize| encode(&vec![(); n], Codec::Bincode).unwrap();
        assert_eq!(decode::<Vec<()>>(&many(1_000_000)).unwrap().len(), 1_000_000);
        let error = decode::<Vec<()>>(&in_bincode([&[253][..], &[0xff; 8]].concat())).unwrap_err();
        assert!(error.to_string().contains("1048576 elements without bytes"), "{error}");
        // Together: each of these lists alone would do.
        let lists = vec![vec![(); 600_000]; 2];
        let refused = encode(&lists, Codec::Bincode).unwrap_err();
        assert!(refused.to_string().contains("1048576 elements without bytes"), "{refused}");
        let config = bincode::config::standard();
        let written = in_bincode(bincode::serde::encode_to_vec(&lists, config).unwrap());
        let error = decode::<Vec<Vec<()>>>(&written).unwrap_err();
        assert!(error.to_string().contains("1048576 elements without bytes"), "{error}");
        let bytes = encode(&vec![7_u8; 2 << 20], Codec::Bincode).unwrap();
        assert_eq!(decode::<Vec<u8>>(&bytes).unwrap().len(), 2 << 20);
    }

    /// A map to the encoder, though no map has one key twice.
    struct Pairs(usize);

    impl Serialize for Pairs {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_map(std::iter::repeat_n(((), ()), self.0))
        }
    }

    #[test]
    #[expect(clippy::zero_sized_map_values, reason = "that is what could go on for ever")]
    fn keys_without_bytes_are_bounded() {
        type Map = std::collections::BTreeMap<(), ()>;
        let many = encode(&Pairs(1_000_000), Codec::Bincode).unwrap();
        assert_eq!(decode::<Map>(&many).unwrap().len(), 1);
        let refused = encode(&Pairs(1_100_000), Codec::Bincode).unwrap_err();
        assert!(refused.to_string().contains("1048576 elements without bytes"), "{refused}");
        let error = decode::<Map>(&in_bincode([&[253][..], &[0xff; 8]].concat())).unwrap_err();
        assert!(error.to_string().contains("1048576 elements without bytes"), "{error}");
    }

    #[test]
    fn a_missing_trailing_argument_is_absent_whatever_the_codec() {
        for codec in [Codec::Json, Codec::Bincode] {
            let old = ("o1".to_owned(),).encode(codec).unwrap().payloads;
            let new = <(String, Option<u8>, Bin<Option<u8>>)>::decode(&old).unwrap();
            assert_eq!(new, ("o1".to_owned(), None, Bin(None)));
            assert!(matches!(
                <(String, u8)>::decode(&old),
                Err(PayloadError::Missing { position: 2, .. })
            ));
        }
    }

    #[test]
    fn extra_arguments_are_refused() {
        let new = (1_u8, 2_u8).encode(Codec::Json).unwrap().payloads;
        assert_eq!(<(u8,)>::decode(&new), Err(PayloadError::Extra { expected: 1, given: 2 }));
    }
}
