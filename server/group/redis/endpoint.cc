#include "server/group/redis/endpoint.h"

#include <poll.h>
#include <pthread.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/group/clock.h"

namespace gradclip {
namespace {

constexpr absl::Duration kLongestFarewell = absl::Seconds(1);
constexpr absl::Duration kLongestPoll = absl::Hours(1);

// For ppoll().
timespec Until(absl::Time when, absl::Time now) {
  return absl::ToTimespec(std::clamp(when - now, absl::ZeroDuration(), kLongestPoll));
}

// Zero: never. What it has told is forgotten.
void SetTimer(int timer, absl::Duration in) {
  const itimerspec when = {.it_interval = {}, .it_value = absl::ToTimespec(in)};
  timerfd_settime(timer, 0, &when, nullptr);
}

}  // namespace

RedisEndpoint::RedisEndpoint(const RedisAddress& address, const RedisOptions& options,
                             const GroupTimes& times, const std::string& server,
                             RedisCounts& counts, Log* log)
    : name_(address.Describe()),
      max_commands_(options.max_commands),
      link_(address, options, times, server, counts, log),
      steps_(link_, times, options.max_open_steps),
      timer_(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)) {
  link_.Observe([this] { Publish(); });
  if (ok()) thread_ = std::thread([this] { Run(); });
}

RedisEndpoint::~RedisEndpoint() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wakes_.Send();
  if (thread_.joinable()) thread_.join();
}

absl::Status RedisEndpoint::MayCome() const {
  const std::lock_guard lock(mutex_);
  if (!reachable_.ok()) return reachable_;
  if (commands_ + tasks_.size() < max_commands_) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("Redis at ", name_, " has ", commands_,
                                             " commands to answer already. Try later"));
}

void RedisEndpoint::Join(std::shared_ptr<RedisCall> call) {
  const absl::Time came = SteadyNow();
  Post([this, call = std::move(call), came] { steps_.Join(call, came); }, /*can_wait=*/true);
}

void RedisEndpoint::Contribute(std::shared_ptr<RedisCall> call, std::string contribution) {
  Post([this, call = std::move(call), contribution = std::move(contribution)]() mutable {
    steps_.Contribute(call, std::move(contribution));
  });
}

void RedisEndpoint::Leave(std::shared_ptr<RedisCall> call, Going going) {
  Post([this, call = std::move(call), going = std::move(going)]() mutable {
    steps_.Leave(call, std::move(going));
  });
}

void RedisEndpoint::StopOpening() {
  Post([this] { steps_.StopOpening(); });
}

bool RedisEndpoint::reachable() const {
  const std::lock_guard lock(mutex_);
  return reachable_.ok();
}

std::string RedisEndpoint::instance() const {
  const std::lock_guard lock(mutex_);
  return instance_;
}

void RedisEndpoint::WaitUntilIdle() {
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [this] { return is_idle_ && tasks_.empty(); });
}

void RedisEndpoint::Post(std::function<void()> task, bool can_wait) {
  const std::lock_guard lock(mutex_);
  tasks_.push_back(std::move(task));
  is_idle_ = false;
  if (woken_) return;
  if (!can_wait) {
    woken_ = true;
    wakes_.Send();
  } else if (!timer_set_) {
    timer_set_ = true;
    SetTimer(timer_.get(), RedisSteps::kJoinWait);
  }
}

void RedisEndpoint::Publish() {
  const std::lock_guard lock(mutex_);
  commands_ = link_.commands() + steps_.joining();
  reachable_ = link_.reachable();
  if (instance_ != link_.instance()) instance_ = link_.instance();
  is_idle_ = tasks_.empty() && link_.ready() && commands_ == 0;
  if (is_idle_) idle_.notify_all();
}

void RedisEndpoint::Run() {
  // hiredis writes to connections that may be closed at the other end.
  sigset_t broken_pipe;
  sigemptyset(&broken_pipe);
  sigaddset(&broken_pipe, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &broken_pipe, nullptr);

  absl::Time farewell = absl::InfiniteFuture();
  while (true) {
    std::vector<std::function<void()>> tasks;
    {
      const std::lock_guard lock(mutex_);
      tasks.swap(tasks_);
      woken_ = false;
      if (std::exchange(timer_set_, false)) SetTimer(timer_.get(), absl::ZeroDuration());
      if (stop_ && farewell == absl::InfiniteFuture()) farewell = SteadyNow() + kLongestFarewell;
    }
    for (std::function<void()>& task : tasks) task();
    const absl::Time before = SteadyNow();
    steps_.SendJoins(before);
    steps_.Look(before);
    // Sends what has come up.
    if (link_.ready()) link_.Move({}, before);
    Publish();
    if (farewell != absl::InfiniteFuture() &&
        (before >= farewell || !link_.ready() || link_.commands() + steps_.joining() == 0)) {
      return;
    }

    const std::array<pollfd, 2> wanted = link_.polled();
    std::array<pollfd, 4> polled = {wanted[0], wanted[1], pollfd{wakes_.get(), POLLIN, 0},
                                    pollfd{timer_.get(), POLLIN, 0}};
    const absl::Time wake = std::min({link_.wake(), steps_.wake(), farewell});
    const timespec longest = Until(wake, before);
    ppoll(polled.data(), polled.size(), &longest, nullptr);
    if (polled[2].revents != 0) {
      uint64_t count = 0;
      [[maybe_unused]] const ssize_t bytes = read(wakes_.get(), &count, sizeof(count));
    }
    link_.Move({polled[0], polled[1]}, SteadyNow());
  }
}

}  // namespace gradclip
