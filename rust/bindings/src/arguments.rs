//! Python arguments as the core takes them, with messages that name argument, value and bound.

use std::ops::RangeInclusive;

use numpy::{PyArray1, PyArrayMethods, PyUntypedArray, PyUntypedArrayMethods};
use pagedkv_core::{CacheConfig, CacheKey, GroupKind, RepetitionLimits, TokenId};
use pyo3::exceptions::{PyMemoryError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyInt, PySequence, PyString};

/// Ids are 32-bit signed in the step arrays, where -1 has a meaning of its own.
const MAX_TOKEN_ID: u32 = i32::MAX as u32;

/// Positions and sums of positions stay within 32 bits.
const MAX_NUM_SLOTS: u64 = 1 << 31;

/// What was given for an int. Judged when its name is known, so that the message has it.
#[derive(Clone)]
pub(crate) enum Int {
    Value(i64),
    /// Beyond 64 bits, and so out of every range here.
    Huge(String),
    /// Anything else, bools too; described.
    Other(String),
}

impl Int {
    pub(crate) const fn of(value: u32) -> Self {
        Self::Value(value as i64)
    }

    /// The value as a `u32` within `bounds`.
    ///
    /// # Errors
    /// `TypeError` for no int, `ValueError` outside of the bounds.
    pub(crate) fn within(self, name: &str, bounds: RangeInclusive<u32>) -> PyResult<u32> {
        let (low, high) = (i64::from(*bounds.start()), i64::from(*bounds.end()));
        self.between(name, low..=high).map(|value| value as u32)
    }

    /// The value as an `i32`.
    ///
    /// # Errors
    /// `TypeError` for no int, `ValueError` if it does not fit.
    pub(crate) fn signed(self, name: &str) -> PyResult<i32> {
        let bounds = i64::from(i32::MIN)..=i64::from(i32::MAX);
        self.between(name, bounds).map(|value| value as i32)
    }

    /// The value as a request id.
    ///
    /// # Errors
    /// `TypeError` for no int, `ValueError` for a negative one, or one of 2^63 and more.
    pub(crate) fn request_id(self) -> PyResult<u64> {
        self.between("request_id", 0..=i64::MAX).map(|value| value as u64)
    }

    fn between(self, name: &str, bounds: RangeInclusive<i64>) -> PyResult<i64> {
        let given = match self {
            Self::Value(value) if bounds.contains(&value) => return Ok(value),
            Self::Value(value) => value.to_string(),
            Self::Huge(value) => value,
            Self::Other(value) => {
                return Err(PyTypeError::new_err(format!("{name} must be an int, got {value}")));
            }
        };
        let (low, high) = bounds.into_inner();
        Err(PyValueError::new_err(format!("{name} must be from {low} to {high}, got {given}")))
    }
}

impl<'py> FromPyObject<'_, 'py> for Int {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if object.is_instance_of::<PyBool>() {
            return Ok(Self::Other(object.repr()?.to_string()));
        }
        if let Ok(value) = object.extract::<i64>() {
            return Ok(Self::Value(value));
        }
        Ok(if object.is_instance_of::<PyInt>() {
            Self::Huge(object.str().map_or_else(|_| "a huge int".to_owned(), |s| s.to_string()))
        } else {
            Self::Other(format!("{} of type {}", object.repr()?, object.get_type().name()?))
        })
    }
}

/// Key of the content hash.
#[derive(Clone, Copy)]
pub(crate) struct HashKey(pub(crate) u64);

impl<'py> FromPyObject<'_, 'py> for HashKey {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        object.extract().map(Self).map_err(|_| {
            PyValueError::new_err(format!(
                "hash_key must be an int from 0 to 2**64 - 1, got {object:?}"
            ))
        })
    }
}

/// Token ids from an int32 array or a sequence of ints.
///
/// # Errors
/// `TypeError` for anything else, `ValueError` for an id out of range; both name the position.
pub(crate) fn token_ids(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Vec<TokenId>> {
    if let Ok(array) = object.cast::<PyUntypedArray>() {
        return array_token_ids(name, array);
    }
    let is_text = object.is_instance_of::<PyString>() || object.is_instance_of::<PyBytes>();
    match object.cast::<PySequence>() {
        Ok(sequence) if !is_text => sequence_token_ids(name, sequence),
        _ => {
            let kind = object.get_type().qualname()?;
            let message =
                format!("{name} must be a sequence of ints or an int32 array, got {kind}");
            Err(PyTypeError::new_err(message))
        }
    }
}

fn array_token_ids(name: &str, array: &Bound<'_, PyUntypedArray>) -> PyResult<Vec<TokenId>> {
    if array.ndim() != 1 {
        let message = format!("{name} must have one dimension, got shape {:?}", array.shape());
        return Err(PyValueError::new_err(message));
    }
    let Ok(array) = array.cast::<PyArray1<i32>>() else {
        let list = array.call_method0("tolist")?;
        return sequence_token_ids(name, list.cast::<PySequence>()?);
    };
    let ids = array.try_readonly().map_err(|error| PyValueError::new_err(error.to_string()))?;
    let ids = ids.as_array();
    if let Some(i) = ids.iter().position(|id| *id < 0) {
        Int::Value(i64::from(ids[i])).within(&format!("{name}[{i}]"), 0..=MAX_TOKEN_ID)?;
    }
    Ok(ids.iter().map(|id| *id as TokenId).collect())
}

fn sequence_token_ids(name: &str, sequence: &Bound<'_, PySequence>) -> PyResult<Vec<TokenId>> {
    let id_of = |(i, item): (usize, Bound<'_, PyAny>)| match item.extract::<u32>() {
        Ok(id) if id <= MAX_TOKEN_ID && !item.is_instance_of::<PyBool>() => Ok(id),
        _ => item.extract::<Int>()?.within(&format!("{name}[{i}]"), 0..=MAX_TOKEN_ID),
    };
    // A sequence can lie about its length, so that this is a hint.
    let mut ids = Vec::with_capacity(sequence.len()?.min(1 << 20));
    for (i, item) in sequence.try_iter()?.enumerate() {
        ids.push(id_of((i, item?))?);
    }
    Ok(ids)
}

/// What cached content is shared under: a salt given as str or bytes, and an adapter.
///
/// # Errors
/// `TypeError` for a salt of another type, `ValueError` for an adapter id out of range.
pub(crate) fn cache_key(salt: Option<&Bound<'_, PyAny>>, adapter_id: Int) -> PyResult<CacheKey> {
    let adapter_id = adapter_id.within("adapter_id", 0..=u32::MAX)?;
    let Some(salt) = salt else { return Ok(CacheKey { adapter_id, salt: Vec::new() }) };
    let salt = if let Ok(text) = salt.cast::<PyString>() {
        text.extract::<String>()?.into_bytes()
    } else if let Ok(bytes) = salt.cast::<PyBytes>() {
        bytes.as_bytes().to_vec()
    } else {
        let kind = salt.get_type().qualname()?;
        let message = format!("cache_salt must be str, bytes or None, got {kind}");
        return Err(PyTypeError::new_err(message));
    };
    Ok(CacheKey { adapter_id, salt })
}

/// Limits from the shortest and the longest pattern and the number of copies; the core checks them together.
///
/// # Errors
/// `TypeError` for no int, `ValueError` for one that does not fit.
pub(crate) fn repetition_limits(
    (min_pattern, max_pattern, min_count): (Int, Int, Int),
) -> PyResult<RepetitionLimits> {
    Ok(RepetitionLimits {
        min_pattern: min_pattern.within("min_pattern_size", 0..=u32::MAX)?,
        max_pattern: max_pattern.within("max_pattern_size", 0..=u32::MAX)?,
        min_count: min_count.within("min_count", 0..=u32::MAX)?,
    })
}

/// KV groups from `("full", 0)`, `("sliding", window)` and `("chunked", chunk)`.
///
/// # Errors
/// `ValueError` for another kind or size.
pub(crate) fn kv_groups(groups: &[(String, Int)]) -> PyResult<Vec<GroupKind>> {
    let kind_of = |(i, (kind, size)): (usize, &(String, Int))| {
        let name = format!("kv_groups[{i}]");
        match kind.as_str() {
            "full" => size.clone().within(&name, 0..=0).map(|_| GroupKind::Full),
            "sliding" => size.clone().within(&name, 1..=i32::MAX as u32).map(GroupKind::Sliding),
            "chunked" => size.clone().within(&name, 1..=i32::MAX as u32).map(GroupKind::Chunked),
            other => Err(PyValueError::new_err(format!(
                "{name} must be ('full', 0), ('sliding', window) or ('chunked', size), got '{other}'"
            ))),
        }
    };
    groups.iter().enumerate().map(kind_of).collect()
}

/// Makes sure that slots can be counted and that the books for `cache` fit in memory: a failed
/// allocation would end the process.
///
/// # Errors
/// `ValueError` for too many slots, `MemoryError` for too large books.
pub(crate) fn check_size(cache: &CacheConfig) -> PyResult<()> {
    let num_slots = u64::from(cache.num_blocks) * u64::from(cache.block_size);
    if num_slots > MAX_NUM_SLOTS {
        return Err(PyValueError::new_err(format!(
            "num_blocks x block_size must be at most {MAX_NUM_SLOTS}, got {num_slots}"
        )));
    }
    let [blocks, size, groups] =
        [cache.num_blocks as usize, cache.block_size as usize, cache.groups.len()];
    let per_block = 64 + 2 * (64 + 4 * size + 4 * groups);
    let tables = [cache.num_rows as usize, cache.blocks_per_row() as usize, groups, 4];
    let bytes = tables
        .iter()
        .try_fold(1_usize, |product, factor| product.checked_mul(*factor))
        .and_then(|tables| blocks.checked_mul(per_block)?.checked_add(tables))
        .unwrap_or(usize::MAX);
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| {
        PyMemoryError::new_err(format!(
            "tables and prefix cache need {bytes} bytes; lower num_blocks, max_num_seqs or max_model_len"
        ))
    })
}
