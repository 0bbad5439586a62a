//! Predictions as columns.

use std::sync::Arc;

use tch::Tensor;
use tfos_data::arrow::array::{ArrayRef, FixedSizeListArray, Float32Array};
use tfos_data::arrow::datatypes::{DataType, Field};
use tfos_executor::Error;

/// A CPU tensor of f32 as one number per row, or one list of them.
pub(crate) fn floats(tensor: &Tensor) -> Result<ArrayRef, Error> {
    let width: i64 = tensor.size().iter().skip(1).product();
    let values = Arc::new(Float32Array::from(Vec::<f32>::try_from(tensor.f_flatten(0, -1)?)?));
    if tensor.dim() == 1 {
        return Ok(values);
    }
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let list = FixedSizeListArray::try_new(item, i32::try_from(width).unwrap_or(i32::MAX), values, None);
    Ok(Arc::new(list.map_err(tfos_data::Error::from)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_numbers_or_lists() {
        let numbers = floats(&Tensor::from_slice(&[1f32, 2.0])).unwrap();
        assert_eq!((numbers.len(), numbers.data_type()), (2, &DataType::Float32));
        let lists = floats(&Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).reshape([3, 2])).unwrap();
        let lists = lists.as_any().downcast_ref::<FixedSizeListArray>().unwrap();
        let second = lists.value(1);
        assert_eq!(second.as_any().downcast_ref::<Float32Array>().unwrap().values(), &[3.0, 4.0]);
        assert_eq!(lists.value_length(), 2);
    }
}
