//! Where components lie: in the object store, by digest, apart from any tenant's folder. Who may run which one is the
//! control plane's to say.

use async_trait::async_trait;
use media::{FolderStore, ObjectError};
use pipeline::{Digest, FunctionCatalog, ObjectKey, StageError, StageResult};

/// Components in the object store.
#[derive(Debug, Clone)]
pub struct ComponentStore {
    objects: FolderStore,
}

impl ComponentStore {
    /// Components in `objects`.
    pub fn new(objects: FolderStore) -> Self {
        Self { objects }
    }

    /// Stores a component; the key is made of its digest.
    pub async fn put(&self, component: Vec<u8>) -> Result<(), ObjectError> {
        self.objects.put(&prefix(), component, "wasm").await.map(drop)
    }

    /// Removes a component that no function names any more.
    pub async fn delete(&self, digest: &Digest) -> Result<(), ObjectError> {
        self.objects.delete(&key(digest)).await
    }
}

fn prefix() -> ObjectKey {
    "components".parse().expect("a fixed key is valid")
}

fn key(digest: &Digest) -> ObjectKey {
    format!("components/{digest}.wasm").parse().expect("a digest makes a valid key")
}

#[async_trait]
impl FunctionCatalog for ComponentStore {
    async fn component(&self, digest: &Digest) -> StageResult<Vec<u8>> {
        self.objects.get(&key(digest)).await.map_err(|error| match error {
            ObjectError::NotFound(_) => {
                StageError::Unavailable("the function was deleted while the job waited; push it again".to_owned())
            }
            other => StageError::Internal(other.to_string()),
        })
    }
}
