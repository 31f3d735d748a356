// The flags of verbs that can be one rank of a group.
#ifndef GRADCLIP_CLIENT_COMMAND_GROUP_FLAGS_H_
#define GRADCLIP_CLIENT_COMMAND_GROUP_FLAGS_H_

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "client/command/output.h"
#include "gradclip/client.h"

namespace gradclip {

// --job, --step, --rank, --world-size; --generation, --attempt, --max-attempts, --group-timeout,
// --job-secret-file.
class GroupFlags {
 public:
  void AddTo(CLI::App& verb);

  // Sets call.group where --job was given, and reads the secret. INVALID_ARGUMENT where the four
  // are not given together, and for a secret's file that can't be read.
  absl::Status Apply(absl::string_view verb, CallOptions& call) const;

  // What is said of the group beside the answer, where there is one.
  void AppendField(const NormAnswer& answer,
                   std::vector<std::pair<std::string, std::string>>& fields) const;
  void AddTo(const NormAnswer& answer, Json& json) const;

 private:
  Group group_;
  std::string timeout_;
  std::string secret_file_;
  // The flags that were given, by name.
  std::vector<std::string> given_;
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_COMMAND_GROUP_FLAGS_H_
