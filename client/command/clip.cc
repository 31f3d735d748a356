// gradclip clip
#include <filesystem>
#include <iostream>
#include <limits>
#include <memory>
#include <set>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "client/command/flags.h"
#include "client/command/gradient.h"
#include "client/command/gradient_calls.h"
#include "client/command/group_flags.h"
#include "client/command/output.h"
#include "client/command/progress.h"
#include "client/command/verbs.h"

namespace gradclip {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct ClipFlags {
  std::vector<std::string> files;
  std::string out;
  ServerFlags server;
  ClipOptions clip;
  SharedFlags shared;
  std::optional<double> max_norm;
  std::string nonfinite = "propagate";
  GroupFlags group;
  std::string reply;
  bool quiet = false;
};

NonfinitePolicy ParseNonfinite(absl::string_view policy) {
  if (policy == "error") return NonfinitePolicy::kError;
  if (policy == "skip") return NonfinitePolicy::kSkip;
  if (policy == "zero") return NonfinitePolicy::kZero;
  return NonfinitePolicy::kPropagate;
}

absl::StatusOr<ClipOptions> MakeOptions(const ClipFlags& flags) {
  ClipOptions options = flags.clip;
  if (!flags.max_norm.has_value()) return UsageError("clip", "--max-norm is missing");
  options.max_norm = *flags.max_norm;
  options.nonfinite = ParseNonfinite(flags.nonfinite);
  options.reply = ParseReply(flags.reply);
  if (!options.total_norm.has_value()) return options;
  // Only the server multiplies by a norm that it did not measure.
  if (options.reply == ReplyMode::kCoefficient) {
    return UsageError("clip", "--total-norm needs --reply gradient or if-changed");
  }
  if (options.norm.per_tensor) {
    return UsageError("clip", "--per-tensor needs the norms measured, and --total-norm skips that");
  }
  return options;
}

// Where each file goes, in order: to `out`, or for several into the folder `out`.
absl::StatusOr<std::vector<std::string>> PlanTargets(const std::vector<std::string>& files,
                                                     const std::string& out) {
  if (files.empty()) return UsageError("clip", "no FILE given");
  if (out.empty()) return UsageError("clip", "-o is missing: where to write");
  const std::filesystem::path folder(out);
  std::error_code ignored;
  if (files.size() == 1) {
    const std::filesystem::path name = std::filesystem::path(files[0]).filename();
    if (std::filesystem::is_directory(folder, ignored)) {
      return UsageError("clip", absl::StrCat("-o ", out,
                                             " is a folder; for one FILE it names a "
                                             "file, such as ",
                                             (folder / name).string()));
    }
    // The format is the input's, and nothing reads a file whose name says another or none.
    if (absl::Status status = GradientFile::CheckName(files[0]); !status.ok()) return status;
    if (folder.extension() != name.extension()) {
      return UsageError("clip", absl::StrCat("-o ", out, " must end in ", name.extension().string(),
                                             ", for the format is kept"));
    }
    if (absl::Status status = StagedFile::Check(out); !status.ok()) return status;
    return std::vector<std::string>{out};
  }
  const bool exists = std::filesystem::exists(folder, ignored);
  if (exists && !std::filesystem::is_directory(folder, ignored)) {
    return UsageError(
        "clip", absl::StrCat("-o ", out, " is no folder, and ", files.size(), " files need one"));
  }
  if (!exists) {
    // Only the folder itself is made: what is made can then be removed where writing fails.
    const std::filesystem::path parent =
        (folder.has_filename() ? folder : folder.parent_path()).parent_path();
    if (!parent.empty() && !std::filesystem::is_directory(parent, ignored)) {
      return absl::NotFoundError(
          absl::StrCat("can't make the folder ", out, ": there is no folder ", parent.string()));
    }
  }
  std::vector<std::string> targets;
  std::set<std::string> names;
  for (const std::string& file : files) {
    const std::string name = std::filesystem::path(file).filename().string();
    if (!names.insert(name).second) {
      return UsageError("clip", absl::StrCat("two files are named ", name, ", and -o ", out,
                                             " can hold only one"));
    }
    targets.push_back((folder / name).string());
    if (absl::Status status = exists ? StagedFile::Check(targets.back()) : absl::OkStatus();
        !status.ok()) {
      return status;
    }
  }
  return targets;
}

// All or none, as far as the system lets it. `written`: as of StagedFile, over all files.
absl::Status WriteAll(std::span<const GradientFile> files, const std::vector<std::string>& targets,
                      const StagedFile::Written& written) {
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::path(targets[0]).parent_path();
  const bool made = files.size() > 1 && std::filesystem::create_directory(folder, error);
  if (error) {
    return absl::UnknownError(
        absl::StrCat("can't make the folder ", folder.string(), ": ", error.message()));
  }
  absl::Status status;
  {
    std::vector<StagedFile> staged;
    uint64_t before = 0;
    for (size_t i = 0; i < files.size() && status.ok(); ++i) {
      absl::StatusOr<StagedFile> file =
          files[i].Stage(targets[i], [&](uint64_t bytes) { written(before + bytes); });
      before += files[i].bytes();
      status = file.status();
      if (file.ok()) staged.push_back(*std::move(file));
    }
    if (status.ok()) status = StagedFile::CommitAll(staged);
  }
  // Empty again, unless some were committed: then it stays.
  if (!status.ok() && made) std::filesystem::remove(folder, error);
  return status;
}

void Print(const ClipFlags& flags, const ClipOptions& options, const Gradient& gradient,
           const GradientCalls& calls, const ClipAnswer& answer, absl::Duration time) {
  if (flags.server.json) {
    Json json = ToJson(answer, gradient.tensors());
    flags.group.AddTo(answer.norm, json);
    std::cout << JsonLine(json);
    return;
  }
  if (!flags.quiet) {
    std::vector<std::pair<std::string, std::string>> fields = {
        {"total norm", NumberText(answer.norm.total_norm)},
        {"coefficient", NumberText(answer.coefficient)},
        {"clipped", ClippedText(answer, options)}};
    AppendFields(gradient, answer.norm, time, fields);
    calls.AppendField(fields);
    flags.group.AppendField(answer.norm, fields);
    fields.emplace_back("written", flags.out);
    std::cout << Fields(fields);
  }
  if (options.norm.per_tensor) {
    std::cout << (flags.quiet ? "" : "\n") << TensorTable(gradient.tensors(), answer.norm.tensors);
  }
}

absl::Status Clip(const ClipFlags& flags) {
  const absl::StatusOr<ClipOptions> options = MakeOptions(flags);
  if (!options.ok()) return options.status();
  CallOptions call = flags.server.call();
  if (absl::Status group = flags.group.Apply("clip", call); !group.ok()) return group;
  const absl::StatusOr<std::vector<std::string>> targets = PlanTargets(flags.files, flags.out);
  if (!targets.ok()) return targets.status();
  const absl::StatusOr<Gradient> gradient = Gradient::Read(flags.files);
  if (!gradient.ok()) return gradient.status();

  Client client(flags.server.server, flags.server.client());
  absl::StatusOr<GradientCalls> calls =
      GradientCalls::Make(client, flags.shared, gradient->tensors());
  if (!calls.ok()) return calls.status();
  Progress progress(ProgressTerminal(flags.quiet));
  // One bar over the call and the writing.
  uint64_t call_bytes = 0, file_bytes = 0;
  for (const GradientFile& file : gradient->files()) file_bytes += file.bytes();
  call.progress = [&](uint64_t done, uint64_t total) {
    call_bytes = total;
    progress.Update(done, call_bytes + file_bytes);
  };
  const absl::Time start = absl::Now();
  const absl::StatusOr<ClipAnswer> answer = calls->Clip(*options, call);
  const absl::Duration time = absl::Now() - start;
  if (!answer.ok()) return flags.server.Advise(answer.status());
  calls->CopyBack(*answer);

  const auto written = [&](uint64_t bytes) {
    progress.Update(call_bytes + bytes, call_bytes + file_bytes);
  };
  if (absl::Status status = WriteAll(gradient->files(), *targets, written); !status.ok()) {
    return status;
  }
  progress.Finish();
  Print(flags, *options, *gradient, *calls, *answer, time);
  return absl::OkStatus();
}

}  // namespace

void AddClipVerb(CLI::App& app, Action& chosen) {
  CLI::App& verb = *app.add_subcommand("clip", "Clip a gradient by its norm and write it");
  const auto flags = std::make_shared<ClipFlags>();
  AddFiles(verb, flags->files);
  verb.add_option("-o,--out", flags->out,
                  "The file to write, or for several the folder (made where missing) that gets "
                  "files of the same names; written whole or not at all")
      ->type_name("OUT");
  AddNumber(
      verb, "--max-norm", {"a number >= 0, or inf", 0, kInfinity},
      [flags](double number) { flags->max_norm = number; },
      "The limit of the norm; inf measures and never clips");
  AddNumber(
      verb, "--epsilon", {"a finite number >= 0", 0, std::numeric_limits<double>::max()},
      [flags](double number) { flags->clip.epsilon = number; }, "Added to the norm before dividing")
      ->default_str(NumberText(flags->clip.epsilon));
  verb.add_option("--nonfinite", flags->nonfinite,
                  "Where the norm is NaN or infinite: propagate as PyTorch does, error (nothing is "
                  "written), skip (nothing is changed), or zero (all elements become 0)")
      ->type_name("POLICY")
      ->capture_default_str()
      ->check(WordCheck({"propagate", "error", "skip", "zero"}));
  AddReply(verb, flags->reply);
  AddNumber(
      verb, "--total-norm",
      {"a number >= 0, inf or nan", 0, kInfinity, /*open=*/false, /*takes_nan=*/true},
      [flags](double number) { flags->clip.total_norm = number; },
      "The norm, after --pre-scale, where it is known: nothing is measured");
  flags->server.AddTo(verb);
  flags->server.AddMessageBytesTo(verb);
  flags->shared.AddTo(verb);
  flags->group.AddTo(verb);
  AddNormFlags(verb, flags->clip.norm);
  AddQuiet(verb, flags->quiet,
           "Print nothing but what --per-tensor and --json ask for, and no progress");
  verb.callback([flags, &chosen] { chosen = [flags] { return Clip(*flags); }; });
}

}  // namespace gradclip
