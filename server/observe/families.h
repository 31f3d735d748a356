// How metrics are handed to prometheus-cpp: families of one name, each with a value per set of
// labels. Functions on plain values; for the files of this folder alone.
#ifndef GRADCLIP_SERVER_OBSERVE_FAMILIES_H_
#define GRADCLIP_SERVER_OBSERVE_FAMILIES_H_

#include <prometheus/metric_family.h>

#include <string>
#include <utility>
#include <vector>

namespace gradclip {

using Families = std::vector<prometheus::MetricFamily>;
using MetricLabels = std::vector<prometheus::ClientMetric::Label>;

// The new family is valid until the next is added.
inline prometheus::MetricFamily& AddFamily(Families& families, prometheus::MetricType type,
                                           std::string name, std::string help) {
  prometheus::MetricFamily& family = families.emplace_back();
  family.name = std::move(name);
  family.help = std::move(help);
  family.type = type;
  return family;
}

// One value of a counter or gauge. (Integers over 2^53 are rounded, as all of Prometheus does.)
inline void AddValue(prometheus::MetricFamily& family, MetricLabels labels, double value) {
  prometheus::ClientMetric& metric = family.metric.emplace_back();
  metric.label = std::move(labels);
  if (family.type == prometheus::MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
}

inline void AddCounter(Families& families, std::string name, std::string help, double value) {
  AddValue(AddFamily(families, prometheus::MetricType::Counter, std::move(name), std::move(help)),
           {}, value);
}

inline void AddGauge(Families& families, std::string name, std::string help, double value) {
  AddValue(AddFamily(families, prometheus::MetricType::Gauge, std::move(name), std::move(help)), {},
           value);
}

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_OBSERVE_FAMILIES_H_
