#include "client/phases.h"

#include <gtest/gtest.h>

namespace nibble::client {
namespace {

TEST(PhaseView, AddsUpStepsAndNamesTheRest) {
  v1::QueryMetricsResponse metrics;
  metrics.add_points()->set_eval_loss(1);  // says nothing of phases
  for (int i = 0; i < 2; ++i) {
    v1::MetricPoint* point = metrics.add_points();
    point->set_step_time_us(9000);
    point->mutable_phases()->set_linear_us(5000);
    point->mutable_phases()->set_attention_us(2000);
    point->mutable_phases()->set_data_us(1000);  // before the step's own time
  }
  const std::string view = PhaseView(metrics, Style{.color = false, .unicode = false});
  EXPECT_NE(view.find("linear            5.00  50.0%"), std::string::npos) << view;
  EXPECT_NE(view.find("attention         2.00  20.0%"), std::string::npos) << view;
  EXPECT_NE(view.find("data              1.00  10.0%"), std::string::npos) << view;
  EXPECT_NE(view.find("other             2.00  20.0%"), std::string::npos) << view;
  EXPECT_NE(view.find("2 steps, 10.00 ms each"), std::string::npos) << view;
}

TEST(PhaseView, OneStepIsOne) {
  v1::QueryMetricsResponse metrics;
  metrics.add_points()->mutable_phases()->set_linear_us(5000);
  metrics.mutable_points(0)->set_step_time_us(5000);
  const std::string view = PhaseView(metrics, Style{.color = false, .unicode = false});
  EXPECT_NE(view.find("\n1 step, 5.00 ms each"), std::string::npos) << view;
}

TEST(PhaseView, IsEmptyWithoutPhases) {
  v1::QueryMetricsResponse metrics;
  metrics.add_points()->set_step_time_us(5);
  EXPECT_EQ(PhaseView(metrics, Style{}), "");
}

}  // namespace
}  // namespace nibble::client
