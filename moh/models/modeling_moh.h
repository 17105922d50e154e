// The text of modeling_moh.py, which lies beside this file and is built into the library.
#pragma once

namespace moh::models {

extern const char* const kModelingMoh;

}  // namespace moh::models
