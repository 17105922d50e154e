// What a model folder holds beside weights, configuration and code, and what a folder made of it keeps: tokenizer, chat
// templates, generation settings, licence, model card. Torch-free.
#pragma once

#include <string>

namespace moh::io {

// Copies the files of one model folder to another, those in folders inside too (chat templates have one). Left out are:
// config.json; weights in whatever format, and folders that hold some; Python code; what moh's own training writes;
// what begins with a dot; files larger than 256 MB. A tokenizer that is within a GGUF file is written as
// tokenizer.json and tokenizer_config.json.
void copy_model_files(const std::string& from, const std::string& to);

}  // namespace moh::io
