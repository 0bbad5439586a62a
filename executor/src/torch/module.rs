//! A TorchScript module, as `torch.jit.script(…).save(…)` writes it: its tensors become the model's variables, under
//! their own names, and trained values go back into a file that `torch.jit.load` reads.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};

use tch::{Device, Kind, Tensor, no_grad};
use torch_sys::C_tensor;

use super::shim::{self, Text};
use crate::{Error, NodeContext};

#[repr(C)]
struct CModule {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn tfos_module_load(
        data: *const c_char,
        size: usize,
        cuda: c_int,
        text: *mut c_char,
        capacity: usize,
    ) -> *mut CModule;
    fn tfos_module_free(module: *mut CModule);
    fn tfos_module_tensors(
        module: *const CModule,
        context: *mut c_void,
        take: extern "C" fn(*mut c_void, *const c_char, bool, *mut C_tensor),
        text: *mut c_char,
        capacity: usize,
    ) -> bool;
    fn tfos_module_forward(
        module: *mut CModule,
        inputs: *const *const C_tensor,
        count: usize,
        text: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
    fn tfos_module_train(module: *mut CModule, on: bool, text: *mut c_char, capacity: usize) -> bool;
    fn tfos_module_save(
        module: *const CModule,
        context: *mut c_void,
        take: extern "C" fn(*mut c_void, *const c_void, usize),
        text: *mut c_char,
        capacity: usize,
    ) -> bool;
}

/// See the module's text.
#[derive(Debug)]
pub struct ScriptModule(*mut CModule);

// SAFETY: a module is not tied to a thread; it is used by one at a time.
unsafe impl Send for ScriptModule {}

/// A tensor of a module.
#[derive(Debug)]
pub struct Named {
    /// Its full name, as in the module's `state_dict`.
    pub name: String,
    /// A parameter; otherwise a buffer.
    pub parameter: bool,
    /// Shares its memory with the module.
    pub tensor: Tensor,
}

fn failed(text: &Text) -> Error {
    Error::Other(Box::new(shim::Error::Torch { text: text.read() }))
}

impl ScriptModule {
    /// From the bytes of its file.
    pub fn load(bytes: &[u8], device: Device) -> Result<Self, Error> {
        let cuda = match device {
            Device::Cuda(n) => n as c_int,
            _ => -1,
        };
        let mut text = Text::new();
        let (room, capacity) = text.room();
        // SAFETY: bytes and text outlive the call; the shim reads within the bounds that it is given.
        let module = unsafe { tfos_module_load(bytes.as_ptr().cast(), bytes.len(), cuda, room, capacity) };
        if module.is_null() { Err(failed(&text)) } else { Ok(Self(module)) }
    }

    /// Its parameters, then its buffers.
    pub fn tensors(&self) -> Result<Vec<Named>, Error> {
        extern "C" fn take(context: *mut c_void, name: *const c_char, parameter: bool, tensor: *mut C_tensor) {
            // SAFETY: `context` is the list below, alive for the call; the name ends with a zero; the tensor is on the
            // heap, and nobody else frees it.
            let (list, name, tensor) =
                unsafe { (&mut *context.cast::<Vec<Named>>(), CStr::from_ptr(name), Tensor::from_ptr(tensor)) };
            list.push(Named { name: name.to_string_lossy().into_owned(), parameter, tensor });
        }
        let mut list: Vec<Named> = vec![];
        let mut text = Text::new();
        let (room, capacity) = text.room();
        // SAFETY: the module lives as long as self, list and text outlive the call.
        let done = unsafe { tfos_module_tensors(self.0, (&raw mut list).cast(), take, room, capacity) };
        if done { Ok(list) } else { Err(failed(&text)) }
    }

    /// What its method `forward` gives, which has to be one tensor.
    pub fn forward(&self, inputs: &[Tensor]) -> Result<Tensor, Error> {
        let pointers: Vec<*const C_tensor> = inputs.iter().map(|t| t.as_ptr()).collect();
        let mut text = Text::new();
        let (room, capacity) = text.room();
        // SAFETY: module, inputs and text outlive the call.
        let output = unsafe { tfos_module_forward(self.0, pointers.as_ptr(), pointers.len(), room, capacity) };
        if output.is_null() {
            return Err(failed(&text));
        }
        // SAFETY: the shim hands over a tensor on the heap that nobody else frees.
        Ok(unsafe { Tensor::from_ptr(output) })
    }

    /// With `on`, dropout and normalization work as in training.
    pub fn train(&self, on: bool) -> Result<(), Error> {
        let mut text = Text::new();
        let (room, capacity) = text.room();
        // SAFETY: module and text outlive the call.
        if unsafe { tfos_module_train(self.0, on, room, capacity) } { Ok(()) } else { Err(failed(&text)) }
    }

    /// The bytes of its file.
    pub fn save(&self) -> Result<Vec<u8>, Error> {
        extern "C" fn take(context: *mut c_void, data: *const c_void, size: usize) {
            // SAFETY: `context` is the vector below; the bytes live through the call.
            let (bytes, data) =
                unsafe { (&mut *context.cast::<Vec<u8>>(), std::slice::from_raw_parts(data.cast::<u8>(), size)) };
            bytes.extend_from_slice(data);
        }
        let mut bytes: Vec<u8> = vec![];
        let mut text = Text::new();
        let (room, capacity) = text.room();
        // SAFETY: module, vector and text outlive the call.
        let done = unsafe { tfos_module_save(self.0, (&raw mut bytes).cast(), take, room, capacity) };
        if done { Ok(bytes) } else { Err(failed(&text)) }
    }
}

impl Drop for ScriptModule {
    fn drop(&mut self) {
        // SAFETY: made by the shim, freed once.
        unsafe { tfos_module_free(self.0) }
    }
}

/// Whether tfos trains or keeps it: other tensors, such as BatchNorm's count of batches, stay in the module as they are.
fn is_float(tensor: &Tensor) -> bool {
    matches!(tensor.kind(), Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16)
}

impl NodeContext {
    /// A TorchScript module whose parameters and buffers are variables of this node, on its device, by their own names.
    pub fn script_module(&self, bytes: &[u8]) -> Result<ScriptModule, Error> {
        let module = ScriptModule::load(bytes, self.device())?;
        for Named { name, tensor, .. } in module.tensors()? {
            if !is_float(&tensor) {
                continue;
            }
            let (folders, last) = name.rsplit_once('.').unwrap_or(("", &name));
            let mut path = self.variables();
            for folder in folders.split('.').filter(|f| !f.is_empty()) {
                path = path.sub(folder);
            }
            let trained = tensor.requires_grad();
            let _shared = path.add(last, tensor, trained);
        }
        Ok(module)
    }
}

/// The file of a module with other values, each by its name, in evaluation mode.
pub fn fill(bytes: &[u8], values: &HashMap<&str, &[f32]>) -> Result<Vec<u8>, Error> {
    let module = ScriptModule::load(bytes, Device::Cpu)?;
    let mut filled = 0;
    for Named { name, mut tensor, .. } in module.tensors()? {
        if !is_float(&tensor) {
            continue;
        }
        let elements = tensor.numel();
        let wrong = || {
            let what = format!("the checkpoint has no {elements} values for `{name}` of the TorchScript module");
            Error::Usage { what, try_this: "it is of another model".into() }
        };
        let values = values.get(name.as_str()).filter(|v| v.len() == elements).ok_or_else(wrong)?;
        no_grad(|| tensor.f_copy_(&Tensor::f_from_slice(values)?.f_reshape(tensor.size())?))?;
        filled += 1;
    }
    if filled != values.len() {
        return Err(Error::Usage {
            what: format!("the checkpoint has {} tensors and the TorchScript module {filled}", values.len()),
            try_this: "it is of another model".into(),
        });
    }
    module.train(false)?;
    module.save()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_module_is_an_error_with_libtorchs_words() {
        for bytes in [&b""[..], b"no module", &[0; 4096]] {
            let error = ScriptModule::load(bytes, Device::Cpu).unwrap_err();
            let text = tfos_core::failure::chain(&error).join(": ");
            assert!(text.contains("libtorch: ") && text.len() > 20, "{text}");
        }
    }

    /// `f(x) = 2 x`, as tch traces it: without tensors of its own.
    fn traced() -> Vec<u8> {
        let input = Tensor::from_slice(&[1f32, 2.0]);
        let mut double = |inputs: &[Tensor]| vec![&inputs[0] * 2.0];
        let module = tch::CModule::create_by_tracing("Double", "forward", &[input], &mut double).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("double.pt");
        module.save(&path).unwrap();
        std::fs::read(&path).unwrap()
    }

    #[test]
    fn a_module_runs_and_is_written_again() {
        let module = ScriptModule::load(&traced(), Device::Cpu).unwrap();
        module.train(true).unwrap();
        assert!(module.tensors().unwrap().is_empty());
        let again = ScriptModule::load(&module.save().unwrap(), Device::Cpu).unwrap();
        let output = again.forward(&[Tensor::from_slice(&[1.5f32, -4.0])]).unwrap();
        assert_eq!(Vec::<f32>::try_from(output).unwrap(), [3.0, -8.0]);
        let error = again.forward(&[]).unwrap_err();
        assert!(tfos_core::failure::chain(&error).join(": ").contains("forward"), "{error:?}");
        let values = HashMap::from([("w", &[1f32][..])]);
        assert!(fill(&traced(), &values).unwrap_err().to_string().contains("the TorchScript module 0"));
    }
}
