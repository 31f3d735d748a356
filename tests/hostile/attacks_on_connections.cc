// Connections: many, silent, short-lived, and more than the server has descriptors for.
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/hostile/attack.h"
#include "tests/hostile/frames.h"

namespace gradclip::hostile {
namespace {

absl::Status Silent(Attacker& attacker) {
  for (int i = 0; i < 2000 && attacker.HasTime(); ++i) {
    if (absl::Status connected = attacker.Connect().status(); !connected.ok()) return connected;
  }
  return absl::OkStatus();
}

absl::Status SilentAfterPreface(Attacker& attacker) {
  for (int i = 0; i < 2000 && attacker.HasTime(); ++i) {
    absl::StatusOr<Http2Connection*> connection = attacker.Connect();
    if (!connection.ok()) return connection.status();
    if (absl::Status sent = (*connection)->SendPreface(); !sent.ok()) return sent;
  }
  return absl::OkStatus();
}

absl::Status HalfAPreface(Attacker& attacker) {
  for (int i = 0; i < 2000 && attacker.HasTime(); ++i) {
    absl::StatusOr<Http2Connection*> connection = attacker.Connect();
    if (!connection.ok()) return connection.status();
    const absl::Status sent = (*connection)->Send(kPreface.substr(0, 5), attacker.deadline());
    if (!sent.ok()) return sent;
  }
  return absl::OkStatus();
}

absl::Status ShortLived(Attacker& attacker) {
  int made = 0;
  for (; made < 5000 && attacker.HasTime(); ++made) {
    if (absl::Status begun = attacker.Begin().status(); !begun.ok()) return begun;
    if (made % 10 == 0) attacker.CloseAll();
  }
  attacker.Note(absl::StrCat(made, " connections"));
  return absl::OkStatus();
}

// CVE-2023-4785: accept() fails while there are no descriptors. What counts is what comes after.
absl::Status MoreThanDescriptors(Attacker& attacker) {
  for (int i = 0; i < 300 && attacker.HasTime(); ++i) {
    absl::StatusOr<Http2Connection*> connection = attacker.Connect();
    if (!connection.ok() || !(*connection)->SendPreface().ok()) break;
  }
  absl::SleepFor(absl::Seconds(2));
  return absl::OkStatus();
}

}  // namespace

const std::vector<Attack>& AttacksOnConnections() {
  static const std::vector<Attack> attacks = {
      {"silent", "2,000 connections that say nothing", Silent},
      {"half-preface", "2,000 with the preface's first bytes", HalfAPreface},
      {"silent-preface", "2,000 with preface and SETTINGS, and then silent", SilentAfterPreface},
      {"short-lived", "5,000 opened and closed, ten at a time", ShortLived},
      {"no-descriptors",
       "CVE-2023-4785: 300 connections to a server with 100 descriptors",
       MoreThanDescriptors,
       {},
       100},
  };
  return attacks;
}

}  // namespace gradclip::hostile
