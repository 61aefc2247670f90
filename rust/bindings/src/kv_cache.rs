//! The block allocator on its own: for tests, and for people with a loop of their own.
//!
//! Each call is a batch that has run when the call returns: what it gives up is free at once, and
//! what it takes is findable at once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods};
use pagedkv_core::{BlockId, CacheConfig, RowId};
use pyo3::exceptions::{PyAssertionError, PyValueError};
use pyo3::prelude::*;

use crate::arguments::{HashKey, Int, cache_key, check_size, kv_groups, token_ids};
use crate::error::enter;
use crate::kv_sequences::KvSequences;
use crate::results::token_array;

/// Tells the handles of different managers apart.
static NUM_MANAGERS: AtomicU64 = AtomicU64::new(0);

const MAX_SIZE: u32 = i32::MAX as u32;

/// A sequence that holds blocks; good for the manager that made it, until it is freed.
#[pyclass(frozen, module = "pagedkv._core")]
pub(crate) struct SequenceHandle {
    owner: u64,
    row: RowId,
    /// That of the sequence; the row has none, or another, once it is freed.
    generation: Option<u64>,
    num_cached_tokens: u32,
}

#[pymethods]
impl SequenceHandle {
    /// Leading tokens whose keys and values were there when the sequence started.
    #[getter]
    fn num_cached_tokens(&self) -> u32 {
        self.num_cached_tokens
    }

    fn __repr__(&self) -> String {
        format!(
            "SequenceHandle(row={}, num_cached_tokens={})",
            self.row.get(),
            self.num_cached_tokens
        )
    }
}

/// The blocks of sequences: allocation, sharing, copy-on-write, windows and prefix hits.
#[pyclass(frozen, module = "pagedkv._core")]
pub(crate) struct KvCacheManager {
    id: u64,
    state: Mutex<KvSequences>,
}

#[pymethods]
impl KvCacheManager {
    /// An empty cache.
    #[new]
    #[pyo3(signature = (
        *, num_blocks, block_size, kv_groups, max_num_seqs, max_model_len,
        enable_prefix_caching=true, hash_key=HashKey(0), hash_bits=Int::of(64)
    ), text_signature = "(*, num_blocks, block_size, kv_groups, max_num_seqs, max_model_len, \
        enable_prefix_caching=True, hash_key=0, hash_bits=64)")]
    #[expect(clippy::too_many_arguments, reason = "one per setting, by keyword")]
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts owned lists")]
    fn new(
        num_blocks: Int,
        block_size: Int,
        kv_groups: Vec<(String, Int)>,
        max_num_seqs: Int,
        max_model_len: Int,
        enable_prefix_caching: bool,
        hash_key: HashKey,
        hash_bits: Int,
    ) -> PyResult<Self> {
        let config = CacheConfig {
            num_blocks: num_blocks.within("num_blocks", 2..=MAX_SIZE)?,
            block_size: block_size.within("block_size", 1..=MAX_SIZE)?,
            groups: self::kv_groups(&kv_groups)?,
            num_rows: max_num_seqs.within("max_num_seqs", 1..=MAX_SIZE)?,
            max_model_len: max_model_len.within("max_model_len", 1..=MAX_SIZE)?,
            enable_prefix_caching,
            hash_key: hash_key.0,
            num_swap_blocks: 0,
            hash_bits: hash_bits.within("hash_bits", 1..=64)?,
        };
        if !config.block_size.is_power_of_two() {
            let message = format!("block_size must be a power of two, got {}", config.block_size);
            return Err(PyValueError::new_err(message));
        }
        if config.groups.is_empty() {
            return Err(PyValueError::new_err("kv_groups must name at least one group, got none"));
        }
        check_size(&config)?;
        let state = KvSequences::new(config);
        let id = NUM_MANAGERS.fetch_add(1, Ordering::Relaxed);
        Ok(Self { id, state: Mutex::new(state) })
    }

    /// Starts a sequence; none without room for it.
    #[pyo3(
        signature = (token_ids, *, cache_salt=None, adapter_id=Int::of(0)),
        text_signature = "($self, token_ids, *, cache_salt=None, adapter_id=0)"
    )]
    fn allocate(
        &self,
        token_ids: &Bound<'_, PyAny>,
        cache_salt: Option<&Bound<'_, PyAny>>,
        adapter_id: Int,
    ) -> PyResult<Option<SequenceHandle>> {
        let tokens = self::token_ids("token_ids", token_ids)?;
        let key = cache_key(cache_salt, adapter_id)?;
        let mut state = self.enter()?;
        state.check_length(tokens.len())?;
        let Some(row) = state.free_row() else { return Ok(None) };
        let num_cached = state.start(row, tokens, &key);
        Ok(num_cached.map(|num_cached| self.handle(&state, row, num_cached)))
    }

    /// Adds tokens to a sequence; false, and nothing added, without room for them.
    fn append(
        &self,
        handle: &Bound<'_, SequenceHandle>,
        token_ids: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let tokens = self::token_ids("token_ids", token_ids)?;
        let mut state = self.enter()?;
        let row = self.row(&state, handle.get())?;
        state.check_length(state.tokens(row).len() + tokens.len())?;
        Ok(state.append(row, &tokens))
    }

    /// Starts a sequence that shares all blocks of another; none if `max_num_seqs` exist.
    fn fork(&self, handle: &Bound<'_, SequenceHandle>) -> PyResult<Option<SequenceHandle>> {
        let mut state = self.enter()?;
        let parent = self.row(&state, handle.get())?;
        let Some(child) = state.free_row() else { return Ok(None) };
        let num_tokens = state.fork(parent, child);
        Ok(Some(self.handle(&state, child, num_tokens)))
    }

    /// Gives up all blocks of a sequence.
    fn free(&self, handle: &Bound<'_, SequenceHandle>) -> PyResult<()> {
        let mut state = self.enter()?;
        let row = self.row(&state, handle.get())?;
        state.free(row);
        Ok(())
    }

    /// How many leading tokens `allocate` would find in the prefix cache.
    #[pyo3(
        signature = (token_ids, *, cache_salt=None, adapter_id=Int::of(0)),
        text_signature = "($self, token_ids, *, cache_salt=None, adapter_id=0)"
    )]
    fn match_prefix(
        &self,
        token_ids: &Bound<'_, PyAny>,
        cache_salt: Option<&Bound<'_, PyAny>>,
        adapter_id: Int,
    ) -> PyResult<u32> {
        let tokens = self::token_ids("token_ids", token_ids)?;
        let key = cache_key(cache_salt, adapter_id)?;
        Ok(self.enter()?.match_prefix(&tokens, &key))
    }

    /// The block copies that became due since the last call of this, in order.
    fn take_copies<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<i32>>> {
        let copies = self.enter()?.take_copies();
        let values: Vec<i32> = copies
            .iter()
            .flat_map(|copy| [copy.group, copy.from.get(), copy.to.get()].map(|v| v as i32))
            .collect();
        values.into_pyarray(py).reshape([copies.len(), 3])
    }

    /// The blocks of a sequence in a group, in order; 0 where a window gave one back.
    fn block_table<'py>(
        &self,
        handle: &Bound<'py, SequenceHandle>,
        group: Int,
    ) -> PyResult<Bound<'py, PyArray1<i32>>> {
        let state = self.enter()?;
        let row = self.row(&state, handle.get())?;
        let last = state.core().config().groups.len() as u32 - 1;
        let group = group.within("group", 0..=last)? as usize;
        let num_columns = state.core().num_columns(row) as usize;
        let line = state.core().tables().line(group, row)[..num_columns].to_vec();
        drop(state);
        Ok(token_array(handle.py(), &line))
    }

    /// The tokens of a sequence.
    fn token_ids<'py>(
        &self,
        handle: &Bound<'py, SequenceHandle>,
    ) -> PyResult<Bound<'py, PyArray1<i32>>> {
        let state = self.enter()?;
        let tokens = state.tokens(self.row(&state, handle.get())?).to_vec();
        drop(state);
        Ok(token_array(handle.py(), &tokens))
    }

    /// How many table entries refer to a block.
    fn ref_count(&self, block: Int) -> PyResult<u32> {
        let state = self.enter()?;
        let block = block.within("block", 0..=state.core().config().num_blocks - 1)?;
        Ok(state.core().pool().ref_count(BlockId::new(block)))
    }

    /// Blocks that can be handed out, cached ones included.
    #[getter]
    fn num_free_blocks(&self) -> PyResult<u32> {
        Ok(self.enter()?.core().pool().num_free())
    }

    /// Blocks that can be found by their content.
    #[getter]
    fn num_cached_blocks(&self) -> PyResult<u32> {
        Ok(self.enter()?.core().num_cached_blocks())
    }

    /// Forgets all cached content; false, and nothing done, while a sequence exists.
    fn reset_prefix_cache(&self) -> PyResult<bool> {
        Ok(self.enter()?.reset_prefix_cache())
    }

    /// Checks tables, counts and cache against each other.
    fn check_invariants(&self) -> PyResult<()> {
        self.enter()?.check_invariants().map_err(PyAssertionError::new_err)
    }

    fn __len__(&self) -> PyResult<usize> {
        Ok(self.enter()?.num_sequences())
    }

    fn __repr__(&self) -> PyResult<String> {
        let state = self.enter()?;
        Ok(format!(
            "KvCacheManager(num_sequences={}, num_free_blocks={}, num_cached_blocks={})",
            state.num_sequences(),
            state.core().pool().num_free(),
            state.core().num_cached_blocks()
        ))
    }
}

impl KvCacheManager {
    fn enter(&self) -> PyResult<std::sync::MutexGuard<'_, KvSequences>> {
        enter(&self.state, "the KV cache manager")
    }

    fn handle(&self, state: &KvSequences, row: RowId, num_cached_tokens: u32) -> SequenceHandle {
        let generation = state.generation(row);
        SequenceHandle { owner: self.id, row, generation, num_cached_tokens }
    }

    /// The row that `handle` stands for.
    fn row(&self, state: &KvSequences, handle: &SequenceHandle) -> PyResult<RowId> {
        if handle.owner != self.id {
            return Err(PyValueError::new_err("handle is of another KvCacheManager"));
        }
        if state.generation(handle.row) != handle.generation {
            return Err(PyValueError::new_err("handle is stale: its sequence was freed"));
        }
        Ok(handle.row)
    }
}
