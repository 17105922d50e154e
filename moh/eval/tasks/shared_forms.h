// Forms of records that several benchmarks share.
#pragma once

#include "moh/eval/task.h"

namespace moh::eval {

// {"query", "choices", "gold"}, as collections of multiple-choice benchmarks for training runs write them.
bool is_query_form(const Record& record);
// Its choices and its gold answer, with `prompt` left empty.
Document read_query_form(const Record& record);
// `text` without `beginning`, which must be there.
std::string without_beginning(const Record& record, const std::string& text, const std::string& beginning);

// Hugging Face's {"choices": {"text", "label"}, "answerKey"} of ARC and OpenBookQA.
Document read_answer_key(const Record& record);

// A question with four lettered answers; `answer_word` asks for the letter.
Document lettered(const std::string& question, const std::vector<std::string>& answers, const std::string& answer_word,
                  int gold);
// The index of a letter A to D.
int letter_index(const Record& record, const std::string& letter);

// name -> what the description calls it, for the benchmarks that ask about many subjects.
struct Subject {
  const char* name;
  const char* words;
};

}  // namespace moh::eval
