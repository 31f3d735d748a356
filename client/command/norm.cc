// gradclip norm
#include <iostream>
#include <memory>

#include "client/command/flags.h"
#include "client/command/gradient.h"
#include "client/command/gradient_calls.h"
#include "client/command/group_flags.h"
#include "client/command/output.h"
#include "client/command/progress.h"
#include "client/command/verbs.h"

namespace gradclip {
namespace {

struct NormFlags {
  std::vector<std::string> files;
  ServerFlags server;
  NormOptions norm;
  SharedFlags shared;
  GroupFlags group;
  bool quiet = false;
};

absl::Status Norm(const NormFlags& flags) {
  if (flags.files.empty()) return UsageError("norm", "no FILE given");
  CallOptions call = flags.server.call();
  if (absl::Status group = flags.group.Apply("norm", call); !group.ok()) return group;
  const absl::StatusOr<Gradient> gradient = Gradient::Read(flags.files);
  if (!gradient.ok()) return gradient.status();

  Client client(flags.server.server, flags.server.client());
  absl::StatusOr<GradientCalls> calls =
      GradientCalls::Make(client, flags.shared, gradient->tensors());
  if (!calls.ok()) return calls.status();
  Progress progress(ProgressTerminal(flags.quiet));
  call.progress = [&](uint64_t done, uint64_t total) { progress.Update(done, total); };
  const absl::Time start = absl::Now();
  const absl::StatusOr<NormAnswer> answer = calls->ComputeNorm(flags.norm, call);
  const absl::Duration time = absl::Now() - start;
  progress.Finish();
  if (!answer.ok()) return flags.server.Advise(answer.status());

  if (flags.server.json) {
    Json json = ToJson(*answer, gradient->tensors());
    flags.group.AddTo(*answer, json);
    std::cout << JsonLine(json);
    return absl::OkStatus();
  }
  if (flags.quiet) {
    std::cout << NumberText(answer->total_norm) << "\n";
  } else {
    std::vector<std::pair<std::string, std::string>> fields = {
        {"total norm", NumberText(answer->total_norm)}};
    AppendFields(*gradient, *answer, time, fields);
    calls->AppendField(fields);
    flags.group.AppendField(*answer, fields);
    std::cout << Fields(fields);
  }
  if (flags.norm.per_tensor) std::cout << "\n" << TensorTable(gradient->tensors(), answer->tensors);
  return absl::OkStatus();
}

}  // namespace

void AddNormVerb(CLI::App& app, Action& chosen) {
  CLI::App& verb = *app.add_subcommand("norm", "Print the norm of a gradient");
  const auto flags = std::make_shared<NormFlags>();
  AddFiles(verb, flags->files);
  flags->server.AddTo(verb);
  flags->server.AddMessageBytesTo(verb);
  flags->shared.AddTo(verb);
  flags->group.AddTo(verb);
  AddNormFlags(verb, flags->norm);
  AddQuiet(verb, flags->quiet,
           "Print the number alone, with what --per-tensor adds, and no progress");
  verb.callback([flags, &chosen] { chosen = [flags] { return Norm(*flags); }; });
}

}  // namespace gradclip
