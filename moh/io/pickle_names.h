// The names that a pickle may mention, and what each one means.
#pragma once

#include <array>
#include <string_view>

namespace moh::io {

enum class PickleName {
  kTensor,       // torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, ...)
  kTypedTensor,  // torch._utils._rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, ...)
  kParameter,    // torch._utils._rebuild_parameter(tensor, requires_grad, hooks)
  kDict,         // an empty dictionary
  kSize,         // torch.Size(tuple): the tuple
  kStorage,      // torch.FloatStorage and so on
  kDtype,        // torch.float32 and so on
  kObject        // kept by name with its arguments and fields, for the curious; means nothing here
};

struct AllowedName {
  std::string_view name;
  PickleName meaning;
  std::string_view dtype = {};
};

inline constexpr auto kAllowedNames = std::to_array<AllowedName>({
    {"torch._utils._rebuild_tensor_v2", PickleName::kTensor},
    {"torch._utils._rebuild_tensor_v3", PickleName::kTypedTensor},
    {"torch._utils._rebuild_parameter", PickleName::kParameter},
    {"collections.OrderedDict", PickleName::kDict},
    {"collections.defaultdict", PickleName::kDict},
    {"builtins.dict", PickleName::kDict},
    {"torch.Size", PickleName::kSize},
    {"torch.DoubleStorage", PickleName::kStorage, "F64"},
    {"torch.FloatStorage", PickleName::kStorage, "F32"},
    {"torch.HalfStorage", PickleName::kStorage, "F16"},
    {"torch.BFloat16Storage", PickleName::kStorage, "BF16"},
    {"torch.LongStorage", PickleName::kStorage, "I64"},
    {"torch.IntStorage", PickleName::kStorage, "I32"},
    {"torch.ShortStorage", PickleName::kStorage, "I16"},
    {"torch.CharStorage", PickleName::kStorage, "I8"},
    {"torch.ByteStorage", PickleName::kStorage, "U8"},
    {"torch.BoolStorage", PickleName::kStorage, "BOOL"},
    {"torch.storage.UntypedStorage", PickleName::kStorage, "U8"},
    {"torch.float64", PickleName::kDtype, "F64"},
    {"torch.float32", PickleName::kDtype, "F32"},
    {"torch.float16", PickleName::kDtype, "F16"},
    {"torch.bfloat16", PickleName::kDtype, "BF16"},
    {"torch.int64", PickleName::kDtype, "I64"},
    {"torch.int32", PickleName::kDtype, "I32"},
    {"torch.int16", PickleName::kDtype, "I16"},
    {"torch.int8", PickleName::kDtype, "I8"},
    {"torch.uint8", PickleName::kDtype, "U8"},
    {"torch.uint16", PickleName::kDtype, "U16"},
    {"torch.uint32", PickleName::kDtype, "U32"},
    {"torch.uint64", PickleName::kDtype, "U64"},
    {"torch.bool", PickleName::kDtype, "BOOL"},
    {"torch.float8_e4m3fn", PickleName::kDtype, "F8_E4M3"},
    {"torch.float8_e5m2", PickleName::kDtype, "F8_E5M2"},
    // What training scripts store beside the weights: their arguments, and results as NumPy scalars.
    {"argparse.Namespace", PickleName::kObject},
    {"torch.device", PickleName::kObject},
    {"numpy.core.multiarray.scalar", PickleName::kObject},
    {"numpy._core.multiarray.scalar", PickleName::kObject},
    {"numpy.dtype", PickleName::kObject},
    {"_codecs.encode", PickleName::kObject},
    {"pathlib.Path", PickleName::kObject},
    {"pathlib.PosixPath", PickleName::kObject},
    {"pathlib.WindowsPath", PickleName::kObject},
    {"pathlib.PurePosixPath", PickleName::kObject},
    {"pathlib._local.PosixPath", PickleName::kObject},
    {"builtins.set", PickleName::kObject},
    {"builtins.frozenset", PickleName::kObject},
    {"builtins.complex", PickleName::kObject},
    {"builtins.bytearray", PickleName::kObject},
});

}  // namespace moh::io
