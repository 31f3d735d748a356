// The command's texts: numbers for people, aligned fields and tables, and the answers as JSON under
// the contract's names. Pure functions.
#ifndef GRADCLIP_CLIENT_COMMAND_OUTPUT_H_
#define GRADCLIP_CLIENT_COMMAND_OUTPUT_H_

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "gradclip/client.h"
#include "nlohmann/json.hpp"

namespace gradclip {

using Json = nlohmann::ordered_json;

// The shortest text that reads back as the same double; "NaN", "Infinity", "-Infinity".
std::string NumberText(double number);
std::string CountText(uint64_t count);                      // "1,434,096"
std::string BytesText(uint64_t bytes);                      // "1.37 MiB"
std::string DurationText(absl::Duration duration);          // "12.3 ms", "4.51 s", "2m5s"
std::string RateText(uint64_t bytes, absl::Duration time);  // "2.31 GB/s", decimal

// The text with control characters and bytes that are not UTF-8 as \x1b: names come from files, and
// must neither break a line nor reach a terminal as orders.
std::string Printable(absl::string_view text);

// "label  value" lines, the values aligned.
std::string Fields(const std::vector<std::pair<std::string, std::string>>& fields);

// One line per tensor, largest norm first (NaN before all), under a head; columns are aligned.
// REQUIRES: one norm per tensor.
std::string TensorTable(std::span<const Tensor> tensors, std::span<const TensorNorm> norms);

// Whether a gradient was clipped, and what became of its elements.
std::string ClippedText(const ClipAnswer& answer, const ClipOptions& options);

// Numbers as numbers, of which JSON has no NaN and no Infinity: these as text.
Json JsonNumber(double number);

// Every field of the contract's message, and a `name` per TensorNorm.
Json ToJson(const NormAnswer& answer, std::span<const Tensor> tensors);
Json ToJson(const ClipAnswer& answer, std::span<const Tensor> tensors);
Json ToJson(const ServerInfo& info);

// One line. Bytes that are not UTF-8 become U+FFFD.
std::string JsonLine(const Json& json);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_COMMAND_OUTPUT_H_
